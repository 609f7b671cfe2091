import type { Request, RequestHandler, Response } from 'express';
import { Problem, sendProblem } from '../http/problem';
import type { SendRejection } from '../http/rejection';
import { InFlight } from './in-flight';
import type { Logger } from './logger';
import type { Metrics } from './metrics';
import { RequestLog } from './request-log';
import { RequestRecord, routeOf, statusOf } from './request-record';
import type { Tracing } from './spans';

const RECOUNT_MS = 10;
// An idle process uses about 80 MiB of its container's 256 MiB.
const MAX_BUFFERED_BYTES = 64 * 1024 * 1024;

/**
 * Tracks the requests that a service handles: creates a record for each, counts those in flight, and reports each
 * completed one to the log, the metrics and the trace.
 */
export class Traffic {
  /** The number of requests since the start, including those in flight and rejected ones. */
  requestCount = 0;
  private readonly inFlight = new InFlight<RequestRecord>();
  private waitingForClients = 0;
  private bufferedBytes = 0;
  private busyCountedMs = 0;

  private readonly requestLog: RequestLog;
  private readonly metrics: Metrics | undefined;
  private readonly tracing: Tracing | undefined;

  constructor(options: { log: Logger; metrics?: Metrics; tracing?: Tracing | undefined }) {
    this.requestLog = new RequestLog(options.log);
    this.metrics = options.metrics;
    this.tracing = options.tracing;
  }

  get size() {
    return this.inFlight.size;
  }

  /** Must be the first middleware, because the others use the record. */
  record(): RequestHandler {
    const traffic = this;
    return function record(req, res, next) {
      traffic.requestStarted(req, res);
      next();
    };
  }

  /** Returns a function that responds to a request that the HTTP server rejects, and records it like any other. */
  reject(): SendRejection {
    return (rejected, problem) => {
      // The server creates its responses from the app's own class.
      const res = rejected as Response;
      res.locals ??= {} as Response['locals'];
      if (res.locals.record === undefined) this.requestStarted(res.req, res);
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
      throw new Problem(503, 'connection_limit_reached', { detail: 'Too many requests in flight.', headers });
    };
  }

  /** Writes the log lines of completed requests; must be called before the process exits. */
  flushLogLines() {
    this.requestLog.flush();
  }

  // Above the limit, closes the connection of the oldest request with unsent bytes. The request with the most bytes
  // may be that of a fast client with a large response.
  private readonly countBuffered = (bytes: number) => {
    this.bufferedBytes += bytes;
    if (this.bufferedBytes <= MAX_BUFFERED_BYTES) return;
    let unsentBytes = 0;
    let oldest: RequestRecord | undefined;
    this.inFlight.forEach((record) => {
      if (record.unsentBytes === 0) return;
      unsentBytes += record.unsentBytes;
      if (oldest === undefined || record.startedMs < oldest.startedMs) oldest = record;
    });
    if (unsentBytes > MAX_BUFFERED_BYTES) oldest?.closeConnection();
  };

  // Counts the requests in flight that are not waiting for their client. The count is cached for RECOUNT_MS, except
  // for requests with bodies, many of which may arrive within that time.
  private countBusy(isExact: boolean) {
    const nowMs = performance.now();
    if (isExact || nowMs - this.busyCountedMs >= RECOUNT_MS) {
      this.busyCountedMs = nowMs;
      this.waitingForClients = 0;
      this.inFlight.forEach((record) => {
        if (record.isWaitingForClient) this.waitingForClients++;
      });
    }
    return this.inFlight.size - this.waitingForClients;
  }

  private requestStarted(req: Request, res: Response) {
    this.requestCount++;
    const record = new RequestRecord(req, res, this.tracing, this.countBuffered);
    res.locals.record = record;
    res.setHeader('x-request-id', record.requestId);
    res.setHeader('x-content-type-options', 'nosniff');
    this.inFlight.add(record);
    res.on('close', () => this.requestEnded(req, res));
  }

  private requestEnded(req: Request, res: Response) {
    const { record } = res.locals;
    record.abort();
    this.inFlight.delete(record);
    this.bufferedBytes -= record.bufferedBytes;
    const status = statusOf(res);
    const route = routeOf(req);
    const durationMs = performance.now() - record.startedMs;
    this.metrics?.requestEnded(req.method, route, status, durationMs);
    record.span?.end(route, status, record.error);
    this.requestLog.write(
      {
        method: req.method,
        route,
        status,
        nextHop: record.nextHop,
        nextHopStatus: record.nextHopStatus,
      },
      {
        requestId: record.requestId,
        traceId: record.traceId,
        durationMs: roundMs(durationMs),
        nextHopMs: record.nextHopMs && roundMs(record.nextHopMs),
        nextHopBytes: record.nextHopBytes,
        error: record.error,
        err: record.err,
      },
      status >= 500 || record.isCutOff,
    );
  }
}

const roundMs = (ms: number) => Math.round(ms * 100) / 100;
