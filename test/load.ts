import type { IncomingHttpHeaders } from 'node:http';
import { Agent } from 'undici';

interface Sample {
  atMs: number;
  ms: number;
  /** What the service itself says it took: `total` of its `Server-Timing`. */
  servedMs: number;
  /** 0 where there was no answer at all. */
  status: number;
  proxyStatus: string | undefined;
}

/** A steady load on one URL from outside, whatever the answers are. */
export class Load {
  readonly samples: Sample[] = [];
  private readonly agent = new Agent({ connections: 256, keepAliveTimeout: 1000 });
  private readonly pending = new Set<Promise<void>>();
  private readonly beganMs = performance.now();
  private readonly timer: NodeJS.Timeout;
  private sent = 0;

  constructor(
    private readonly url: URL,
    perSecond: number,
  ) {
    this.timer = setInterval(() => {
      const due = ((performance.now() - this.beganMs) / 1000) * perSecond;
      for (; this.sent < due; this.sent++) this.send();
    }, 5);
  }

  /** Ends the load when all is answered, and resolves to what came of it. */
  async end() {
    clearInterval(this.timer);
    await Promise.all(this.pending);
    await this.agent.close();
    const failed = this.samples.filter(({ status }) => status !== 200).length;
    const slowestMs = Math.round(Math.max(...this.samples.map(({ ms }) => ms)));
    return { sent: this.samples.length, failed, slowestMs };
  }

  private send() {
    const atMs = performance.now();
    const record = (status: number, headers: IncomingHttpHeaders = {}) => {
      const servedMs = Number(/total;dur=([\d.]+)/.exec(String(headers['server-timing']))?.[1]);
      const proxyStatus = headers['proxy-status'] as string | undefined;
      this.samples.push({ atMs, ms: performance.now() - atMs, servedMs, status, proxyStatus });
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
