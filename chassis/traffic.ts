import type { Request, RequestHandler, Response } from 'express';
import { InFlight } from './in-flight';
import type { Logger } from './logger';
import type { Metrics } from './metrics';
import { Problem, sendProblem } from './problem';
import type { Reject } from './rejection';
import { RequestRecord, routeOf, statusOf } from './request-record';
import type { Tracing } from './tracing';

const RECOUNT_MS = 10;
// An idle process uses about 90 of its container's 256 MiB.
const MAX_BUFFERED_BYTES = 64 * 1024 * 1024;

/**
 * The requests that one service is answering: gives each its record, counts them, and tells of each
 * that ends: to the log, the metrics and the trace.
 */
export class Traffic {
  private readonly inFlight = new InFlight<RequestRecord>();
  private readonly lines: Line[] = [];
  private waitingForClients = 0;
  private bufferedBytes = 0;
  private countedMs = 0;

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
      traffic.begin(req, res);
      next();
    };
  }

  /** Responds with a problem document to what the HTTP server rejects, so that it is recorded like any other request. */
  reject(): Reject {
    return (rejected, problem) => {
      // The server makes its responses from the app's own class.
      const res = rejected as Response;
      res.locals ??= {} as Response['locals'];
      if (res.locals.record === undefined) this.begin(res.req, res);
      sendProblem(res, problem);
    };
  }

  /**
   * Responds 503 immediately while more than `max` requests are in flight. A request whose client is still sending
   * its body or receiving its response is not counted, so that slow clients do not block others. A request with a
   * body needs this check again once the body has arrived.
   */
  limit(max: number, service: string): RequestHandler {
    const headers = { 'retry-after': '1', 'proxy-status': `${service}; error=connection_limit_reached` };
    const traffic = this;
    return function limit(req, res, next) {
      if (traffic.size <= max || traffic.countBusy(req.body !== undefined) <= max) return next();
      res.locals.record.error = 'connection_limit_reached';
      throw new Problem(503, 'connection_limit_reached', { detail: 'Too many requests at once.', headers });
    };
  }

  /** Writes the log lines of the requests that have ended: before the process exits, that can't wait. */
  logEnded() {
    for (const line of this.lines.splice(0)) {
      if (line.status >= 500) this.log.error(line, 'request completed');
      else this.log.info(line, 'request completed');
    }
  }

  // Above the limit, close the connection of the request with the most unsent bytes.
  private countBuffered(bytes: number) {
    this.bufferedBytes += bytes;
    if (this.bufferedBytes <= MAX_BUFFERED_BYTES) return;
    let unsentBytes = 0;
    let largest: RequestRecord | undefined;
    this.inFlight.forEach((record) => {
      unsentBytes += record.unsentBytes;
      if (largest === undefined || record.unsentBytes > largest.unsentBytes) largest = record;
    });
    if (unsentBytes > MAX_BUFFERED_BYTES) largest?.closeConnection();
  }

  // Counts in-flight requests that are not waiting for their client. Cached for RECOUNT_MS, except for requests with
  // bodies, many of which may arrive within that time.
  private countBusy(isExact: boolean) {
    const nowMs = performance.now();
    if (isExact || nowMs - this.countedMs >= RECOUNT_MS) {
      this.countedMs = nowMs;
      this.waitingForClients = 0;
      this.inFlight.forEach((record) => {
        if (record.isWaitingForClient) this.waitingForClients++;
      });
    }
    return this.inFlight.size - this.waitingForClients;
  }

  private begin(req: Request, res: Response) {
    const record = new RequestRecord(req, res, this.tracing, (bytes) => this.countBuffered(bytes));
    res.locals.record = record;
    res.setHeader('x-request-id', record.requestId);
    res.setHeader('x-content-type-options', 'nosniff');
    this.inFlight.add(record);
    res.on('close', () => this.ended(req, res));
  }

  private ended(req: Request, res: Response) {
    const { record } = res.locals;
    record.abandonNextHops();
    this.inFlight.delete(record);
    this.bufferedBytes -= record.bufferedBytes;
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
