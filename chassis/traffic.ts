import type { Request, RequestHandler, Response } from 'express';
import { InFlight } from './in-flight';
import type { Logger } from './logger';
import type { Metrics } from './metrics';
import { Problem } from './problem';
import { RequestRecord, routeOf, statusOf } from './request-record';
import type { Tracing } from './tracing';

/**
 * The requests that one service is answering: gives each its record, counts them, and tells of each
 * that ends: to the log, the metrics and the trace.
 */
export class Traffic {
  private readonly inFlight = new InFlight<RequestRecord>();
  private ending = false;
  private readonly lines: Line[] = [];

  private readonly log: Logger;
  private readonly metrics: Metrics | undefined;
  private readonly tracing: Tracing | undefined;

  constructor(tellers: { log: Logger; metrics?: Metrics; tracing?: Tracing | undefined }) {
    this.log = tellers.log;
    this.metrics = tellers.metrics;
    this.tracing = tellers.tracing;
  }

  get size() {
    return this.inFlight.size;
  }

  /** Comes first: whatever comes later can be told by its record. */
  record(): RequestHandler {
    const traffic = this;
    return function record(req, res, next) {
      const entry = new RequestRecord(req, res, traffic.tracing);
      res.locals.record = entry;
      res.setHeader('x-request-id', entry.requestId);
      if (traffic.ending) res.setHeader('connection', 'close');
      traffic.inFlight.add(entry);
      res.on('close', () => traffic.ended(req, res));
      next();
    };
  }

  /** Answers 503 at once while more than `most` requests are in flight. */
  limit(most: number, service: string): RequestHandler {
    const headers = { 'retry-after': '1', 'proxy-status': `${service}; error=connection_limit_reached` };
    const traffic = this;
    return function limit(_req, res, next) {
      if (traffic.inFlight.size <= most) return next();
      res.locals.record.error = 'connection_limit_reached';
      throw new Problem(503, 'connection_limit_reached', { detail: 'Too many requests at once.', headers });
    };
  }

  /** From now on each answer is the last one on its connection. */
  end() {
    this.ending = true;
    this.inFlight.forEach(({ res }) => {
      if (!res.headersSent) res.setHeader('connection', 'close');
    });
  }

  /** Writes the log lines of the requests that have ended: before the process exits, that can't wait. */
  logEnded() {
    for (const line of this.lines.splice(0)) {
      if (line.status >= 500) this.log.error(line, 'request completed');
      else this.log.info(line, 'request completed');
    }
  }

  private ended(req: Request, res: Response) {
    const { record } = res.locals;
    record.abandonNextHops();
    this.inFlight.delete(record);
    const status = statusOf(res);
    const route = routeOf(req);
    const durationMs = performance.now() - record.startedMs;
    this.metrics?.requestEnded(req.method, route, status, durationMs);
    record.span?.end(route, status, record.error);
    const line = {
      requestId: record.requestId,
      traceId: record.traceId,
      method: req.method,
      route,
      status,
      durationMs: rounded(durationMs),
      nextHop: record.nextHop,
      nextHopMs: record.nextHopMs && rounded(record.nextHopMs),
      nextHopStatus: record.nextHopStatus,
      nextHopBytes: record.nextHopBytes,
      error: record.error,
      err: record.err,
    };
    // Those that end in one turn of the event loop are written together at its end: one at a time, the
    // logger's code has left the processor's caches in between (docs/decisions/0008-hot-path.md).
    if (this.lines.push(line) === 1) setImmediate(() => this.logEnded());
  }
}

interface Line {
  readonly status: number;
}

const rounded = (ms: number) => Math.round(ms * 100) / 100;
