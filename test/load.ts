import type { IncomingHttpHeaders } from 'node:http';
import { Agent } from 'undici';

interface Sample {
  sentAtMs: number;
  durationMs: number;
  /** The duration that the service measured: `total` in `Server-Timing`. */
  serverMs: number;
  /** 0 if there was no response. */
  status: number;
  proxyStatus: string | undefined;
}

/** Sends GET requests to one URL at a constant rate, whatever the responses are. */
export class LoadGenerator {
  readonly samples: Sample[] = [];
  private readonly agent = new Agent({ connections: 256, keepAliveTimeout: 1000 });
  private readonly pending = new Set<Promise<void>>();
  private readonly startedMs = performance.now();
  private readonly timer: NodeJS.Timeout;
  private sent = 0;

  constructor(
    private readonly url: URL,
    perSecond: number,
  ) {
    this.timer = setInterval(() => {
      const due = ((performance.now() - this.startedMs) / 1000) * perSecond;
      for (; this.sent < due; this.sent++) this.send();
    }, 5);
  }

  /** Stops sending, waits for pending responses, and resolves to a summary. */
  async stop() {
    clearInterval(this.timer);
    await Promise.all(this.pending);
    await this.agent.close();
    const failed = this.samples.filter(({ status }) => status !== 200).length;
    const slowestMs = Math.round(Math.max(...this.samples.map(({ durationMs }) => durationMs)));
    return { sent: this.samples.length, failed, slowestMs };
  }

  private send() {
    const sentAtMs = performance.now();
    const record = (status: number, headers: IncomingHttpHeaders = {}) => {
      const serverMs = Number(/total;dur=([\d.]+)/.exec(String(headers['server-timing']))?.[1]);
      const proxyStatus = headers['proxy-status'] as string | undefined;
      this.samples.push({
        sentAtMs,
        durationMs: performance.now() - sentAtMs,
        serverMs,
        status,
        proxyStatus,
      });
    };
    const request = this.agent
      .request({ origin: this.url.origin, path: this.url.pathname, method: 'GET' })
      .then(async ({ statusCode, body, headers }) => {
        await body.dump();
        record(statusCode, headers);
      })
      .catch(() => record(0))
      .finally(() => this.pending.delete(request));
    this.pending.add(request);
  }
}
