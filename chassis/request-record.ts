import type { IncomingHttpHeaders } from 'node:http';
import type { Request, Response } from 'express';
import { hopByHop } from './hop-by-hop';
import type { Placed } from './in-flight';
import type { Answer } from './next-hop/answer';
import type { HopRecord } from './next-hop/client';
import type { HopFailure } from './next-hop/failure';
import type { Awaited } from './next-hop/shared-exchanges';
import { requestIdFrom } from './request-id';
import { parseTraceparent } from './trace-context';
import type { ServerSpan, Tracing } from './tracing';

declare global {
  namespace Express {
    interface Locals {
      record: RequestRecord;
    }
  }
}

/** What is known of one request while it is served: its log line, in the making. */
export class RequestRecord implements HopRecord, Placed {
  place = 0;
  readonly startedMs = performance.now();
  readonly requestId: string;
  readonly traceId: string | undefined;
  readonly passedOn: string[];
  readonly span: ServerSpan | undefined;
  private readonly awaited: Awaited[] = [];
  /** The client is still sending the body that a handler reads. */
  isReceivingBody = false;
  /** Body bytes received or written so far, including those already sent. */
  bufferedBytes = 0;
  nextHop: string | undefined;
  nextHopMs: number | undefined;
  nextHopStatus: number | undefined;
  nextHopBytes: number | undefined;
  error: string | undefined;
  err: unknown;

  constructor(
    req: Request,
    readonly res: Response,
    tracing: Tracing | undefined,
    private readonly onBuffered: (bytes: number) => void = () => {},
  ) {
    const { headers } = req;
    this.requestId = requestIdFrom(headers['x-request-id']);
    this.passedOn = ['x-request-id', this.requestId];
    this.passOn('baggage', headers);
    this.span = tracing?.begin(req.method, req.path, headers);
    this.traceId = this.span?.traceId ?? parseTraceparent(headers.traceparent)?.traceId;
    // With tracing on, each request to a next hop gets those of its own span.
    if (this.span === undefined && this.traceId !== undefined) {
      this.passOn('traceparent', headers);
      this.passOn('tracestate', headers);
    }
  }

  /** The service is only waiting for the client to send or receive. */
  get isWaitingForClient() {
    return this.isReceivingBody || this.res.writableEnded;
  }

  /** Bytes that are in memory only because the client is slow. */
  get unsentBytes() {
    return this.isReceivingBody ? this.bufferedBytes : this.res.writableLength;
  }

  /** Counts bytes that are buffered while the client sends or receives. */
  countBuffered(bytes: number) {
    this.bufferedBytes += bytes;
    this.onBuffered(bytes);
  }

  /** Closes the connection, because slow clients use too much memory. */
  closeConnection() {
    this.failedBy('slow_client', new Error('connection closed: too many bytes buffered for slow clients'));
    // A response that waits for an earlier one of its connection has no socket of its own yet.
    this.res.req.socket.destroy();
  }

  /** What is under way to a next hop is cancelled when the client leaves. */
  awaits(exchange: Awaited) {
    this.awaited.push(exchange);
  }

  abandonNextHops() {
    for (const exchange of this.awaited) exchange.abandon();
  }

  /** The answer of a next hop has begun. */
  nextHopBegan(nextHop: string, durationMs: number) {
    this.nextHop = nextHop;
    this.nextHopMs = durationMs;
  }

  nextHopEnded(
    nextHop: string,
    durationMs: number,
    answer: Answer | undefined,
    failure: HopFailure | undefined,
  ) {
    this.nextHopBegan(nextHop, durationMs);
    this.nextHopStatus = answer?.status;
    this.nextHopBytes = answer?.bytes;
    if (failure !== undefined) this.failedBy(failure.type, failure.cause ?? failure);
  }

  /** The request fails: `error` is a word for it, `cause` what was thrown. */
  failedBy(error: string, cause: unknown) {
    this.error = error;
    this.err = cause;
  }

  /** The value of `Server-Timing` (W3C) for an answer that begins now. */
  serverTiming(): string {
    const total = `total;dur=${hundredths(performance.now() - this.startedMs)}`;
    return this.nextHopMs === undefined
      ? total
      : `${this.nextHop};dur=${hundredths(this.nextHopMs)}, ${total}`;
  }

  private passOn(name: string, headers: IncomingHttpHeaders) {
    const value = headers[name];
    if (value !== undefined && !hopByHop(headers).includes(name)) this.passedOn.push(name, String(value));
  }
}

/** The template of the route that a request took, such as `/books/:id`; all unknown paths share one. */
export function routeOf(req: Request): string {
  const path: unknown = req.route?.path;
  return typeof path === 'string' ? req.baseUrl + path : 'unmatched';
}

/** A client that left before the answer was whole gets nginx's 499: there is no status that anybody saw. */
export function statusOf(res: Response): number {
  return res.writableFinished ? res.statusCode : 499;
}

// Of whole numbers, in a fifth of the time of `toFixed`.
function hundredths(ms: number) {
  const all = Math.round(ms * 100);
  const rest = all % 100;
  return `${(all - rest) / 100}.${rest < 10 ? '0' : ''}${rest}`;
}
