import type { IncomingHttpHeaders } from 'node:http';
import type { Request, Response } from 'express';
import type { AbortSignalLike, AttemptInfo, AttemptOutcome, NextHopError } from 'next-hop';
import { hopByHopHeaders } from '../http/hop-by-hop';
import { requestIdFrom } from '../http/request-id';
import { AttemptTimings, attemptList, type ReplicaNumbers, toHundredths } from './attempt-timings';
import type { Indexed } from './in-flight';
import type { ServerSpan, Tracing } from './spans';
import { parseTraceparent } from './trace-context';

declare global {
  namespace Express {
    interface Locals {
      record: RequestRecord;
    }
  }
}

/**
 * Collects the log fields of one request. It is also the abort signal for the client's disconnect: an
 * `AbortController` per request would cost much more.
 */
export class RequestRecord implements AbortSignalLike, Indexed {
  index = 0;
  readonly startedMs = performance.now();
  readonly requestId: string;
  readonly traceId: string | undefined;
  /** Headers for requests to next hops; names and values alternate. */
  readonly forwardedHeaders: string[];
  readonly span: ServerSpan | undefined;
  aborted = false;
  private readonly abortListeners: (() => void)[] = [];
  /** Whether the request asks the next hop for a fault, so that no other request may share its exchange. */
  carriesFault = false;
  /** Undefined if responses do not name the replica. */
  replicas: ReplicaNumbers | undefined;
  private firstAttempt: AttemptInfo | undefined;
  /** Undefined while the time of the exchange is all there is to report about its attempts. */
  private attemptTimings: AttemptTimings | undefined;
  /** Whether a handler is reading the body and the client is still sending it. */
  isReceivingBody = false;
  /** Body bytes received or written so far, including those already sent. */
  bufferedBytes = 0;
  nextHop: string | undefined;
  nextHopMs: number | undefined;
  nextHopStatus: number | undefined;
  nextHopBytes: number | undefined;
  error: string | undefined;
  err: unknown;
  /** Whether the service itself closed the connection before the response was complete. */
  isCutOff = false;

  constructor(
    req: Request,
    readonly res: Response,
    tracing: Tracing | undefined,
    private readonly onBuffered: (bytes: number) => void = () => {},
  ) {
    const { headers } = req;
    this.requestId = requestIdFrom(headers['x-request-id']);
    this.forwardedHeaders = ['x-request-id', this.requestId];
    this.forwardHeader('baggage', headers);
    this.span = tracing?.startServerSpan(req.method, req.path, headers);
    this.traceId = this.span?.traceId ?? parseTraceparent(headers.traceparent)?.traceId;
    // With tracing enabled, each request to a next hop carries the context of its own span instead.
    if (this.span === undefined && this.traceId !== undefined) {
      this.forwardHeader('traceparent', headers);
      this.forwardHeader('tracestate', headers);
    }
  }

  /** Whether the service is only waiting for the client to send or receive. */
  get isWaitingForClient() {
    return this.isReceivingBody || this.res.writableEnded;
  }

  /** The number of bytes that are in memory only because the client is slow. */
  get unsentBytes() {
    return this.isReceivingBody ? this.bufferedBytes : this.res.writableLength;
  }

  /** Counts bytes that are buffered while the client sends or receives. */
  countBuffered(bytes: number) {
    this.bufferedBytes += bytes;
    this.onBuffered(bytes);
  }

  /** Closes the client's connection because slow clients use too much memory. */
  closeConnection() {
    this.recordFailure(
      'slow_client',
      new Error('connection closed: too many bytes buffered for slow clients'),
    );
    // `res.socket` is null while a pipelined response waits for the previous one.
    this.res.req.socket.destroy();
  }

  addEventListener(_type: 'abort', listener: () => void) {
    this.abortListeners.push(listener);
  }

  removeEventListener(_type: 'abort', listener: () => void) {
    if (this.abortListeners.at(-1) === listener) this.abortListeners.pop();
  }

  /** Cancels pending work when the response is complete or the client has disconnected. */
  abort() {
    this.aborted = true;
    for (const listener of this.abortListeners) listener();
  }

  attemptStarted(attempt: AttemptInfo) {
    if (attempt.number > 1) return this.timingsOfAttempts().started(attempt);
    this.firstAttempt = attempt;
    this.attemptTimings = undefined;
  }

  /** Need not be called for a single attempt that got a response: its time is that of the exchange. */
  attemptEnded(attempt: AttemptInfo, outcome: AttemptOutcome) {
    this.timingsOfAttempts().ended(attempt, outcome);
  }

  /** Takes over the attempts of a request whose exchange this one shares. */
  shareAttempts({ firstAttempt, attemptTimings, replicas }: RequestRecord) {
    this.firstAttempt = firstAttempt;
    this.attemptTimings = attemptTimings;
    this.replicas = replicas;
  }

  nextHopStarted(nextHop: string, durationMs: number) {
    this.nextHop = nextHop;
    this.nextHopMs = durationMs;
  }

  nextHopEnded(
    nextHop: string,
    durationMs: number,
    status: number | undefined,
    bytes: number | undefined,
    error: NextHopError | undefined,
  ) {
    this.nextHopStarted(nextHop, durationMs);
    this.nextHopStatus = status;
    this.nextHopBytes = bytes;
    if (error !== undefined) this.recordFailure(error.code, error.cause ?? error);
  }

  /** Closes the connection before the response is complete. */
  cutOff() {
    this.isCutOff = true;
    this.res.destroy();
  }

  /** Records the log fields of a failure: its code and the error that was thrown. */
  recordFailure(code: string, cause: unknown) {
    this.error = code;
    this.err = cause;
  }

  /**
   * Sets `Server-Timing` (W3C) on a response that starts now. If there was more than one attempt, or if replicas are
   * numbered, also sets `x-attempts`.
   */
  setTimingHeaders() {
    const { res, nextHop, nextHopMs, firstAttempt, attemptTimings, replicas } = this;
    const nowMs = performance.now();
    const total = `total;dur=${toHundredths(nowMs - this.startedMs)}`;
    if (nextHopMs === undefined) return void res.setHeader('server-timing', total);
    if (attemptTimings?.isRepeated) {
      res.setHeader('server-timing', `${attemptTimings.entries(String(nextHop), nowMs)}, ${total}`);
      res.setHeader('x-attempts', attemptTimings.list(replicas));
      return;
    }
    res.setHeader('server-timing', `${nextHop};dur=${toHundredths(nextHopMs)}, ${total}`);
    if (replicas !== undefined && firstAttempt !== undefined)
      res.setHeader('x-attempts', attemptList([firstAttempt], replicas));
  }

  private timingsOfAttempts() {
    this.attemptTimings ??= new AttemptTimings(this.firstAttempt);
    return this.attemptTimings;
  }

  /** Forwards a header of the client to next hops, unless it is hop-by-hop. */
  forwardHeader(name: string, headers: IncomingHttpHeaders) {
    const value = headers[name];
    if (value !== undefined && !hopByHopHeaders(headers).includes(name))
      this.forwardedHeaders.push(name, String(value));
  }
}

/** Returns the template of the matched route, such as `/books/:id`, or `unmatched`. */
export function routeOf(req: Request): string {
  const path: unknown = req.route?.path;
  return typeof path === 'string' ? req.baseUrl + path : 'unmatched';
}

/** Returns the status that was sent, or nginx's 499 if the client disconnected before the end of the response. */
export function statusOf(res: Response): number {
  return res.writableFinished || res.locals.record.isCutOff ? res.statusCode : 499;
}
