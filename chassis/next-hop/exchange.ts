import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import type { ClientSpan, ServerSpan } from '../tracing';
import type { Address } from './address';
import type { Addresses } from './addresses';
import { Answer } from './answer';
import type { Admission, CircuitBreaker } from './circuit-breaker';
import {
  BLAMES_ADDRESS,
  CallerLeft,
  type FailureType,
  failureType,
  HopFailure,
  isGatewayError,
  RETRYABLE,
} from './failure';
import { Probe } from './probe';
import type { RetryBudget } from './retry-budget';
import type { Awaited, Settle } from './shared-exchanges';

/** What the exchanges with one next hop have in common. */
export interface Hop {
  readonly name: string;
  readonly timeoutMs: number;
  /** The largest body that is read, in bytes. */
  readonly maxBodyBytes: number;
  /** Whether the request id and the trace of the caller go along. */
  readonly passesOn: boolean;
  readonly addresses: Addresses;
  readonly budget: RetryBudget;
  readonly breaker: CircuitBreaker;
  /** While the error of a connection is being told: what ends just then, ends because of it. */
  isConnectionFailing: boolean;
  readonly onRepeat: (kind: 'retry' | 'hedge') => void;
}

export type HopRequest = Dispatcher.DispatchOptions & {
  readonly headers: string[];
  readonly origin: URL;
  readonly body: Buffer | null;
};

/** Where an answer goes while it comes in, whatever its status. Only one that is begun can be cut short. */
export interface Sink {
  begin(status: number, headers: IncomingHttpHeaders): void;
  /** @returns whether it takes more at once; if not, `onDrained` is called when it does */
  write(chunk: Buffer, onDrained: () => void): boolean;
  end(): void;
}

const MAX_RETRIES = 2;
const RETRY_JITTER_MS = 25;
const MOST_CHUNKS = 1000;
const MAX_DISCARDED_BYTES = 64 * 1024;

/**
 * One exchange with a next hop within one deadline: a request, sent again where that is safe.
 * `settle` is called once, with an answer that came in whole or with why there is none.
 */
export class Exchange implements Awaited {
  private live: Attempt[] = [];
  private retries = 0;
  private attempts = 0;
  private settled = false;
  private begun = false;
  private readonly isRepeatable: boolean;
  private admission: Admission = 'refused';
  private timer: NodeJS.Timeout | undefined;
  // Before the first attempt there is only the look-up.
  private lastType: FailureType = 'dns_timeout';
  private lastCause: unknown;

  constructor(
    readonly hop: Hop,
    readonly request: HopRequest,
    readonly span: ServerSpan | undefined,
    /** Takes the answer while it comes in; without it, that of a success is kept, of others only the status. */
    readonly sink: Sink | undefined,
    private readonly settle: Settle,
  ) {
    const { method, body } = request;
    this.isRepeatable = (method === 'GET' || method === 'HEAD') && body === null;
  }

  start(): this {
    const nowMs = performance.now();
    this.hop.budget.deposit(nowMs);
    this.admission = this.hop.breaker.admit(nowMs);
    if (this.admission === 'refused') {
      this.fail('destination_unavailable');
      return this;
    }
    const { timeoutMs } = this.hop;
    this.timer = this.isRepeatable
      ? setTimeout(quarterPassed, timeoutMs / 4, this)
      : setTimeout(deadlinePassed, timeoutMs, this);
    this.attempt();
    if (this.isRepeatable) this.probeEjected(nowMs);
    return this;
  }

  /** Nobody waits for the answer any more: whatever is under way is cancelled. */
  abandon() {
    if (this.settled) return;
    this.hop.breaker.abandon(this.admission);
    this.finish(new CallerLeft());
  }

  /** A quarter of the deadline has passed without an answer: one more request is sent. */
  hedge() {
    this.timer = setTimeout(deadlinePassed, (this.hop.timeoutMs * 3) / 4, this);
    const [late] = this.live;
    // What waits for a connection of our own is late for our own sake.
    if (late === undefined || late.waitsForConnection || this.begun) return;
    const nowMs = performance.now();
    late.address.suspect(nowMs);
    const other = this.hop.addresses.choose(late.address);
    // Nor would it help to wait for a connection of our own.
    if (other === undefined || other.isBusy || !this.hop.budget.withdraw(nowMs)) return;
    this.hop.onRepeat('hedge');
    this.attempt(late.address);
  }

  expire() {
    // What was sent and not answered tells more than what still waits for a connection of our own.
    const late = this.live.find((attempt) => !attempt.waitsForConnection) ?? this.live[0];
    const type = late?.expiredAs() ?? this.lastType;
    // Once the response has begun, it may be the client that is slow.
    if (type === 'http_response_timeout' && !this.begun) late?.address.failed(performance.now());
    this.fail(type, this.lastCause);
  }

  /** The answer of this attempt is passed on from now; those of others come too late. */
  began(attempt: Attempt, sink: Sink, status: number, headers: IncomingHttpHeaders) {
    this.begun = true;
    this.leave(attempt);
    this.overtaken(attempt, performance.now());
    for (const other of this.live) other.cancel();
    this.live = [attempt];
    sink.begin(status, headers);
  }

  answered(attempt: Attempt) {
    if (!isGatewayError(attempt.status)) attempt.address.succeeded();
    if (this.settled) return;
    this.leave(attempt);
    const nowMs = performance.now();
    this.overtaken(attempt, nowMs);
    this.hop.breaker.record(this.admission, false, nowMs);
    this.sink?.end();
    this.finish(undefined, attempt.answer());
  }

  failed(attempt: Attempt, type: FailureType, cause?: unknown) {
    const nowMs = performance.now();
    this.distrust(attempt, type, nowMs);
    if (this.settled) return;
    this.leave(attempt);
    this.lastType = type;
    this.lastCause = cause;
    if (this.live.length > 0) return;
    if (this.mayRetry(type) && this.hop.budget.withdraw(nowMs)) this.retry(attempt, type);
    else this.fail(type, cause);
  }

  /**
   * A 502, 503 or 504 is not the response while another attempt is in flight, or while another address can be
   * tried.
   * @returns whether that status is to be discarded
   */
  retriesElsewhere(attempt: Attempt): boolean {
    if (this.settled || this.begun || !this.isRepeatable) return false;
    if (this.live.length === 1 && !this.mayRetryElsewhere(attempt.address)) return false;
    this.leave(attempt);
    this.lastType = 'http_response_timeout';
    if (this.live.length === 0) this.retryAfterJitter(attempt.address);
    return true;
  }

  private attempt(avoid?: Address, overNewConnection = false) {
    const address = this.hop.addresses.choose(avoid);
    if (address === undefined) return this.awaitAddress();
    const attempt = new Attempt(this, address, overNewConnection, this.attempts++);
    this.live.push(attempt);
    attempt.send();
  }

  private awaitAddress() {
    this.hop.addresses.lookup().then(
      () => {
        if (this.settled) return;
        if (this.hop.addresses.choose() === undefined) this.fail('dns_error');
        else this.attempt();
      },
      (error: unknown) => this.fail(failureType(error, false), error),
    );
  }

  private mayRetry(type: FailureType) {
    return this.isRepeatable && !this.begun && RETRYABLE.has(type) && this.retries < MAX_RETRIES;
  }

  private mayRetryElsewhere(failed: Address) {
    if (this.retries === MAX_RETRIES) return false;
    const other = this.hop.addresses.choose(failed);
    if (other === undefined || other === failed || other.isEjected) return false;
    return this.hop.budget.withdraw(performance.now());
  }

  private overtaken(by: Attempt, nowMs: number) {
    for (const beaten of this.live) if (beaten.number < by.number) beaten.address.suspect(nowMs);
  }

  // After a kept connection that was closed nothing is gained by waiting, only by a new connection.
  private retry(failed: Attempt, type: FailureType) {
    if (!wasKept(failed, type)) return this.retryAfterJitter(failed.address);
    this.countRetry();
    this.attempt(failed.address, true);
  }

  private retryAfterJitter(failed: Address) {
    this.countRetry();
    const retryNow = () => {
      if (!this.settled) this.attempt(failed);
    };
    setTimeout(retryNow, Math.random() * RETRY_JITTER_MS * this.retries);
  }

  private countRetry() {
    this.retries++;
    this.hop.onRepeat('retry');
  }

  private distrust(attempt: Attempt, type: FailureType, nowMs: number) {
    if (BLAMES_ADDRESS.has(type)) return attempt.address.failed(nowMs);
    if (!RETRYABLE.has(type)) return;
    if (wasKept(attempt, type)) attempt.address.suspect(nowMs);
    else attempt.address.eject(nowMs);
    this.hop.addresses.refresh();
  }

  // The probe is a copy of this request.
  private probeEjected(nowMs: number) {
    const address = this.hop.addresses.dueForProbe(nowMs);
    if (address === undefined || !this.hop.budget.withdraw(nowMs)) return;
    address.startProbe();
    this.hop.onRepeat('hedge');
    new Probe(address, this.hop.timeoutMs / 4).send(this.request);
  }

  private fail(type: FailureType, cause?: unknown) {
    if (this.settled) return;
    // The own bound tells of the load, not of the next hop.
    if (type === 'connection_limit_reached') this.hop.breaker.abandon(this.admission);
    else this.hop.breaker.record(this.admission, true, performance.now());
    this.finish(new HopFailure(type, this.hop.name, cause === undefined ? undefined : { cause }));
  }

  private finish(failure: HopFailure | CallerLeft | undefined, answer?: Answer) {
    this.settled = true;
    clearTimeout(this.timer);
    for (const attempt of this.live)
      attempt.cancel(failure instanceof HopFailure ? failure.type : 'cancelled');
    this.settle(failure, answer);
  }

  private leave(attempt: Attempt) {
    this.live = this.live.filter((other) => other !== attempt);
  }
}

const CANCELLED = new Error('cancelled');

const isSuccess = (status: number) => status >= 200 && status < 300;

// None is ever asked for.
function hasContentCoding({ 'content-encoding': coding }: IncomingHttpHeaders) {
  return coding !== undefined && coding !== 'identity';
}

/** What already the headers of a success tell against its body. */
function unusable(headers: IncomingHttpHeaders, maxBodyBytes: number): FailureType | undefined {
  if (hasContentCoding(headers)) return 'http_response_content_coding';
  return Number(headers['content-length']) > maxBodyBytes ? 'http_response_body_size' : undefined;
}

// A connection that closed without a byte may have been a kept one; undici does not tell.
function wasKept(attempt: Attempt, type: FailureType) {
  return type === 'connection_terminated' && !attempt.overNewConnection;
}

// Functions of their own, so that a timer needs no closure per request.
function quarterPassed(exchange: Exchange) {
  exchange.hedge();
}

function deadlinePassed(exchange: Exchange) {
  exchange.expire();
}

function stopDiscarding(attempt: Attempt) {
  attempt.stopDiscarding();
}

/** A request on its way to one address: undici's handler for it. */
class Attempt implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private readonly span: ClientSpan | undefined;
  status = 0;
  private headers: IncomingHttpHeaders = {};
  private readonly chunks: Buffer[] = [];
  /** How many of the first chunks were put together of many. */
  private joined = 0;
  private bytes = 0;
  private over = false;
  private cancelled = false;
  /** Its status was enough: the body is read to its end, so that the connection can be used again. */
  private isDiscarding = false;
  private readonly foundAllBusy: boolean;

  constructor(
    private readonly exchange: Exchange,
    readonly address: Address,
    readonly overNewConnection: boolean,
    /** How many were sent before it in the exchange. */
    readonly number: number,
  ) {
    const { hop, request, span } = exchange;
    this.span = span?.beginClient(hop.name, request.origin, request.method, request.path, number);
    this.foundAllBusy = address.isBusy;
  }

  send() {
    const { address, overNewConnection } = this;
    address.inFlight++;
    const request = this.tracedRequest();
    if (overNewConnection) address.newConnections.dispatch({ ...request, reset: true }, this);
    else address.connections.dispatch(request, this);
  }

  private tracedRequest() {
    const { request, hop } = this.exchange;
    return this.span && hop.passesOn
      ? { ...request, headers: [...request.headers, ...this.span.headers] }
      : request;
  }

  /** Gives the request up. One that still waits for a connection is given up when it gets it. */
  cancel(why: FailureType | 'cancelled' = 'cancelled') {
    this.cancelled = true;
    this.release(why);
    this.controller?.abort(CANCELLED);
  }

  /** All connections were busy when it was sent, and it still waits for one. */
  get waitsForConnection() {
    return this.foundAllBusy && this.controller === undefined;
  }

  expiredAs(): FailureType {
    if (this.controller !== undefined) return 'http_response_timeout';
    return this.foundAllBusy ? 'connection_limit_reached' : 'connection_timeout';
  }

  answer() {
    return new Answer(this.status, this.headers, this.chunks, this.bytes);
  }

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.controller = controller;
    if (this.cancelled) controller.abort(CANCELLED);
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number, headers: IncomingHttpHeaders) {
    if (status < 200) return;
    this.status = status;
    this.headers = headers;
    if (isGatewayError(status)) {
      this.address.failed(performance.now());
      if (this.exchange.retriesElsewhere(this)) return this.discard();
    }
    const { sink } = this.exchange;
    if (sink !== undefined) return this.passOn(sink);
    if (!isSuccess(status)) return this.answerWithoutBody();
    const refused = unusable(headers, this.exchange.hop.maxBodyBytes);
    if (refused !== undefined) this.refuse(refused);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer) {
    this.bytes += chunk.length;
    if (this.isDiscarding) {
      if (this.bytes > MAX_DISCARDED_BYTES) this.stopDiscarding();
      return;
    }
    const { sink } = this.exchange;
    if (sink !== undefined) return this.passOnMore(sink, controller, chunk);
    if (this.bytes > this.exchange.hop.maxBodyBytes) return this.refuse('http_response_body_size');
    this.chunks.push(chunk);
    // A body of many tiny chunks would take hundreds of times its size.
    if (this.chunks.length - this.joined > MOST_CHUNKS)
      this.chunks.push(Buffer.concat(this.chunks.splice(this.joined++)));
  }

  onResponseEnd() {
    if (this.isDiscarding || this.cancelled) return this.release();
    if (this.wasCutOff()) return this.refuse('http_response_incomplete');
    this.release();
    this.exchange.answered(this);
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error) {
    const type = failureType(error, this.status !== 0);
    this.release(type);
    if (!this.cancelled && !this.isDiscarding) this.exchange.failed(this, type, error);
  }

  // To undici a reset is as good an end as any of a body without a length.
  private wasCutOff() {
    const { 'content-length': length, 'transfer-encoding': coding } = this.headers;
    return this.exchange.hop.isConnectionFailing && length === undefined && coding === undefined;
  }

  private passOn(sink: Sink) {
    if (hasContentCoding(this.headers)) this.refuse('http_response_content_coding');
    else this.exchange.began(this, sink, this.status, this.headers);
  }

  private passOnMore(sink: Sink, controller: Dispatcher.DispatchController, chunk: Buffer) {
    if (this.cancelled || sink.write(chunk, () => controller.resume())) return;
    controller.pause();
  }

  private answerWithoutBody() {
    this.exchange.answered(this);
    this.discard();
  }

  private discard() {
    this.isDiscarding = true;
    setTimeout(stopDiscarding, this.exchange.hop.timeoutMs / 4, this).unref();
  }

  stopDiscarding() {
    this.release();
    this.cancel();
  }

  private refuse(type: FailureType) {
    this.cancel(type);
    this.exchange.failed(this, type);
  }

  private release(error?: FailureType | 'cancelled') {
    if (this.over) return;
    this.over = true;
    this.address.inFlight--;
    this.span?.end(this.status || undefined, error);
  }
}
