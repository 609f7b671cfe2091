import type { IncomingHttpHeaders } from 'node:http';
import { Agent } from 'undici';

export interface Sample {
  /** The number of the request, from 0 in the order in which they were sent. */
  number: number;
  sentAtMs: number;
  durationMs: number;
  /** The duration that the service measured: `total` in `Server-Timing`. */
  serverMs: number;
  /** 0 if there was no response. */
  status: number;
  proxyStatus: string | undefined;
  retryAfter: string | undefined;
  /** Why there was no response. */
  error?: string;
}

export interface LoadOptions {
  /** Opens a connection for each request. By default, connections are kept. */
  opensConnections?: boolean;
  /** POSTs books with the titles `<prefix> 0`, `<prefix> 1` …, and their title as idempotency key, instead of GET. */
  bookPrefix?: string;
}

/** Sends requests to one URL at a constant rate, whatever the responses are. */
export class LoadGenerator {
  readonly samples: Sample[] = [];
  private readonly agent: Agent;
  private readonly pending = new Set<Promise<void>>();
  private readonly startedMs = performance.now();
  private readonly timer: NodeJS.Timeout;
  private sent = 0;

  constructor(
    private readonly url: URL,
    perSecond: number,
    private readonly options: LoadOptions = {},
  ) {
    // undici closes the connection after each request if `pipelining` is 0.
    const pipelining = options.opensConnections ? 0 : 1;
    this.agent = new Agent({ connections: 256, keepAliveTimeout: 1000, pipelining });
    this.timer = setInterval(() => {
      const due = ((performance.now() - this.startedMs) / 1000) * perSecond;
      for (; this.sent < due; this.sent++) this.send(this.sent);
    }, 5);
  }

  /** Stops sending, waits for pending responses, and resolves to a summary. */
  async stop() {
    clearInterval(this.timer);
    await Promise.all(this.pending);
    await this.agent.close();
    const expected = this.options.bookPrefix === undefined ? 200 : 201;
    const failed = this.samples.filter(({ status }) => status !== expected).length;
    const slowestMs = Math.round(Math.max(...this.samples.map(({ durationMs }) => durationMs)));
    return { sent: this.samples.length, failed, slowestMs };
  }

  private send(number: number) {
    const sentAtMs = performance.now();
    const record = (status: number, headers: IncomingHttpHeaders = {}, error?: string) => {
      const serverMs = Number(/total;dur=([\d.]+)/.exec(String(headers['server-timing']))?.[1]);
      this.samples.push({
        number,
        sentAtMs,
        durationMs: performance.now() - sentAtMs,
        serverMs,
        status,
        proxyStatus: headers['proxy-status'] as string | undefined,
        retryAfter: headers['retry-after'],
        ...(error === undefined ? {} : { error }),
      });
    };
    const request = this.agent
      .request({ origin: this.url.origin, path: this.url.pathname, ...this.message(number) })
      .then(async ({ statusCode, body, headers }) => {
        await body.dump();
        record(statusCode, headers);
      })
      .catch((error) => record(0, {}, String(error)))
      .finally(() => this.pending.delete(request));
    this.pending.add(request);
  }

  private message(number: number) {
    const { bookPrefix } = this.options;
    return bookPrefix === undefined ? { method: 'GET' as const } : bookMessage(`${bookPrefix} ${number}`);
  }
}

/** A POST of a book whose idempotency key is its title. */
export function bookMessage(title: string) {
  const headers = { 'content-type': 'application/json', 'idempotency-key': title.replaceAll(' ', '-') };
  return { method: 'POST' as const, headers, body: JSON.stringify({ title, author: 'Load' }) };
}
