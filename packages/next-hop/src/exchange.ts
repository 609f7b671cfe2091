import type { IncomingHttpHeaders } from 'node:http';
import { Readable } from 'node:stream';
import { type Dispatcher, errors } from 'undici';
import { Attempt, type AttemptKind, type AttemptOwner, type RawHeaders } from './attempt';
import type { Admission } from './circuit-breaker';
import { connectionErrors } from './connection-attempts';
import type { Endpoint } from './endpoint';
import {
  CONNECTION_FAILURES,
  ENDPOINT_FAILURES,
  isGatewayError,
  lookupErrorCode,
  NextHopError,
  type NextHopErrorCode,
  NO_CONNECTION,
} from './errors';
import { isOneShot, withHeaders } from './headers';
import type { Hop, NextHopRequestOptions } from './hop';
import type { ExchangeInfo } from './observer';
import { Probe } from './probe';

const CALLER_ERROR_CODES: ReadonlySet<string> = new Set([
  'UND_ERR_INVALID_ARG',
  'UND_ERR_NOT_SUPPORTED',
  'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH',
  'ERR_INVALID_ARG_TYPE',
]);
const MAX_RETRIES = 2;
// Another address is likely to respond. The same one may need time to restart. Node truncates delays to whole
// milliseconds, at least 1, so the first retry on another address waits 1 or 2 ms.
const JITTER_MS = { other: 3, same: 25 };

/**
 * One exchange with a next hop: a request with its retries and hedges, within one deadline. To its handler it
 * looks like a single undici request, and it is the controller of that request.
 */
export class Exchange implements AttemptOwner, Dispatcher.DispatchController, ExchangeInfo {
  index = 0;
  readonly startedMs = performance.now();
  readonly context: unknown;
  attempts = 0;
  statusCode: number | undefined;
  bodyBytes = 0;
  aborted = false;
  paused = false;
  reason: Error | null = null;
  rawHeaders: RawHeaders = null;
  rawTrailers: RawHeaders = null;
  readonly timeoutMs: number;
  readonly isRepeatable: boolean;
  private inFlight: Attempt[] = [];
  private winner: Attempt | undefined;
  private retries = 0;
  private isRetryScheduled = false;
  /** The endpoints whose attempts failed or were slow, oldest first. */
  private avoided: readonly Endpoint[] = [];
  private hasEnded = false;
  private bodyStream: Readable | undefined;
  private admission: Admission = 'rejected';
  private admittedMs = this.startedMs;
  private timer: NodeJS.Timeout | undefined;
  private hedgeDelayMs = 0;
  /** The attempt that had no response when the hedge delay passed. */
  private late: Attempt | undefined;
  // If the deadline passes before the first attempt, the lookup has not finished.
  private lastCode: NextHopErrorCode = 'dns_timeout';
  private lastCause: unknown;

  constructor(
    readonly hop: Hop,
    public request: NextHopRequestOptions,
    private readonly handler: Dispatcher.DispatchHandler,
  ) {
    const { method, body, headers, timeoutMs, context } = request;
    if (isOneShot(headers)) this.request = withHeaders(request, []);
    this.timeoutMs = timeoutMs ?? hop.timeoutMs;
    this.context = context;
    this.isRepeatable = (method === 'GET' || method === 'HEAD') && isEmpty(body);
  }

  get nextHop() {
    return this.hop.name;
  }

  get origin() {
    return this.hop.origin;
  }

  get method() {
    return this.request.method;
  }

  get path() {
    return this.request.path;
  }

  start() {
    this.hop.active.add(this);
    this.watchBody();
    try {
      this.handler.onRequestStart?.(this, undefined);
    } catch (error) {
      return this.abort(error as Error);
    }
    if (this.hasEnded) return;
    this.hop.budget.deposit(this.startedMs);
    this.admission = this.hop.breaker.admit(this.startedMs);
    if (this.admission === 'pass' || this.admission === 'probe') return this.sendFirst(this.timeoutMs);
    this.hop.endpoints.refresh();
    if (this.admission === 'rejected') return this.fail('destination_unavailable');
    this.sendAfterConnectionCheck().catch((error) => this.abort(error));
  }

  /**
   * Cancels the exchange. If `reason` is a `NextHopError` of this next hop, its response was unusable, so the exchange
   * counts as failed.
   */
  abort(reason?: Error) {
    if (this.hasEnded) return;
    this.aborted = true;
    this.reason = reason ?? new errors.RequestAbortedError();
    const isFailure = this.reason instanceof NextHopError && this.reason.nextHop === this.hop.name;
    if (isFailure) this.hop.breaker.record(this.admission, true, performance.now(), true, this.admittedMs);
    else this.hop.breaker.cancel(this.admission, this.admittedMs);
    this.end(isFailure ? (this.reason as NextHopError) : undefined, !isFailure);
    // A handler may abort in one of its callbacks, which must return before the next one is called.
    queueMicrotask(() => this.reportError(this.reason as Error));
  }

  pause() {
    this.paused = true;
    this.winner?.pause();
  }

  resume() {
    this.paused = false;
    this.winner?.resume();
  }

  /** Called when the hedge delay has passed, and again later if a hedge would have had to wait for a connection. */
  onHedgeTimer() {
    const leftMs = this.leftMs();
    if (leftMs === 0) return onDeadline(this);
    this.timer = setTimeout(onDeadline, leftMs, this);
    // If this process was busy, the response may have arrived already. It is read before this callback runs.
    setImmediate(hedgeIfLate, this);
  }

  /** Sends a hedge if it is due, or restarts the timer. */
  hedgeIfLate() {
    const [late] = this.inFlight;
    if (this.hasEnded || this.winner !== undefined) return;
    // No attempt is in flight: a retry waits for its jitter, or the first attempt for the lookup.
    if (late === undefined) return this.restartHedgeTimer(this.hedgeDelayMs);
    // A queued attempt says nothing about the endpoint, so don't hedge it.
    if (late.isQueued || this.inFlight.length > 1 || this.isRetryScheduled) return;
    const nowMs = performance.now();
    if (this.late === undefined) {
      const remainingMs = this.hedgeDelayMs - (nowMs - late.sentMs);
      // A retry, or an attempt that has just left the queue, gets the whole hedge delay. Timers can be 1 ms early.
      if (remainingMs > 1) return this.restartHedgeTimer(remainingMs);
      this.late = late;
      late.endpoint.suspect();
      if (!late.wasSent) this.hop.endpoints.ejectUntilConnected(late.endpoint, nowMs);
      this.avoid(late.endpoint);
    } else if (late !== this.late) return;
    const other = this.hop.endpoints.choose(this.avoided);
    // If the hedge would have to wait for a connection, try again later.
    if (other?.isBusy) return this.restartHedgeTimer(this.timeoutMs / 4);
    if (other !== undefined && this.hop.budget.withdrawHedge(nowMs)) this.send('hedge');
  }

  private restartHedgeTimer(delayMs: number) {
    // The deadline comes first, and the timer is already set to it.
    if (this.leftMs() <= delayMs) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(onHedgeTimer, delayMs, this);
  }

  /** Ends the exchange because its deadline has passed. */
  endAfterDeadline() {
    if (this.hasEnded) return;
    // An attempt that was sent says more about the next hop than one that is still queued.
    const late = this.inFlight.find((attempt) => !attempt.isQueued) ?? this.inFlight[0];
    // If an earlier attempt could not connect, the connections that this one waits for can't be established either.
    const waitsForFailingConnections =
      late?.isQueued && this.attempts > 1 && NO_CONNECTION.has(this.lastCode);
    const code = late === undefined || waitsForFailingConnections ? this.lastCode : late.timeoutCode();
    // If the handler has paused the response, the caller is slow, not the next hop.
    if (this.paused && this.winner !== undefined) return this.reject(new NextHopError(code, this.hop.name));
    if (code === 'http_response_timeout' && late !== undefined)
      this.hop.endpoints.failed(late.endpoint, performance.now());
    this.fail(code, this.lastCause);
  }

  // The hedge delay starts when the request is sent.
  leftQueue() {
    if (!this.isRepeatable || this.inFlight.length > 1) return;
    clearTimeout(this.timer);
    this.startHedgeTimer(this.leftMs());
  }

  endIfExpired({ isQueued }: Attempt) {
    if (this.inFlight.length > 1 || this.leftMs() > 0) return;
    if (isQueued) return this.fail('connection_limit_reached', this.lastCause);
    // A connection exists, so `connection_timeout` would be wrong. The next hop got nothing, so it has not failed.
    this.fail(this.attempts > 1 ? this.lastCode : 'http_response_timeout', this.lastCause, false);
  }

  informationReceived(statusCode: number, headers: IncomingHttpHeaders, statusMessage?: string) {
    if (this.hasEnded || this.winner !== undefined) return;
    try {
      this.handler.onResponseStart?.(this, statusCode, headers, statusMessage);
    } catch (error) {
      this.abort(error as Error);
    }
  }

  /** Makes this attempt's response the response of the exchange, and cancels the other attempts. */
  responseStarted(
    attempt: Attempt,
    statusCode: number,
    headers: IncomingHttpHeaders,
    statusMessage?: string,
  ) {
    this.winner = attempt;
    this.statusCode = statusCode;
    const nowMs = performance.now();
    if (this.isRepeatable) this.hop.hedgeDelay.record(nowMs - attempt.sentMs);
    if (this.inFlight.length > 1) this.cancelOthers(attempt, nowMs);
    this.hop.observer.responseStarted?.(this);
    if (this.paused) attempt.pause();
    try {
      this.handler.onResponseStarted?.();
      this.handler.onResponseStart?.(this, statusCode, headers, statusMessage);
    } catch (error) {
      this.abort(error as Error);
    }
  }

  dataReceived(chunk: Buffer) {
    this.bodyBytes += chunk.length;
    try {
      this.handler.onResponseData?.(this, chunk);
    } catch (error) {
      this.abort(error as Error);
    }
  }

  responseEnded(attempt: Attempt, trailers: IncomingHttpHeaders) {
    const nowMs = performance.now();
    if (!isGatewayError(attempt.statusCode as number)) attempt.endpoint.succeeded(nowMs);
    if (this.hasEnded) return;
    this.inFlight.length = 0;
    this.hop.breaker.record(this.admission, false, nowMs, true, this.admittedMs);
    this.end();
    try {
      this.handler.onResponseEnd?.(this, trailers);
    } catch (error) {
      this.reportError(error as Error);
    }
  }

  /** An attempt failed. The exchange fails with it, unless another one is in flight or it can be retried. */
  attemptFailed(attempt: Attempt, code: NextHopErrorCode, error: Error) {
    if (isCallerError(error, attempt) || this.isBodyDestroyed(error)) return this.reject(error);
    const nowMs = performance.now();
    this.recordEndpointFailure(attempt, code, nowMs);
    if (this.hasEnded) return;
    this.remove(attempt);
    this.lastCode = code;
    this.lastCause = error instanceof NextHopError ? undefined : error;
    if (this.winner === undefined) {
      const canUseSame = mayHaveBeenIdle(attempt, code);
      if (this.isRetryScheduled || !this.needsRetry(this.inFlight, attempt.endpoint, canUseSame)) return;
    }
    if (this.canRetry(attempt, code) && this.hop.budget.withdraw(nowMs)) this.retry(attempt, code);
    else if (this.inFlight.length === 0) this.fail(code, this.lastCause);
  }

  /**
   * Discards a 502, 503 or 504 if another attempt is in flight or a retry on another endpoint is possible. If the attempt
   * in flight is late, such a retry is sent, too.
   * @returns whether the response must be discarded
   */
  retryOnOtherEndpoint(attempt: Attempt): boolean {
    if (this.hasEnded || this.winner !== undefined || !this.isRepeatable) return false;
    // The deadline passed while this process was busy, so there is no time for another attempt.
    if (this.inFlight.length === 1 && this.leftMs() === 0) return false;
    this.avoid(attempt.endpoint);
    if (!this.canUseOther(attempt.endpoint)) return false;
    const others = this.inFlight.filter((other) => other !== attempt);
    const isRetried =
      !this.isRetryScheduled && this.needsRetry(others, attempt.endpoint) && this.withdrawRetry();
    if (!isRetried && !this.isRetryScheduled && others.length === 0) return false;
    this.inFlight = others;
    this.lastCode = 'http_response_timeout';
    if (isRetried) this.retryAfterJitter(attempt.endpoint);
    return true;
  }

  /**
   * Whether to retry now: no attempt is in flight, or only the late one is, and an untried endpoint is available (or
   * `failed` itself, if `canUseSame` is true).
   */
  private needsRetry([pending]: readonly Attempt[], failed: Endpoint, canUseSame = false) {
    if (pending === undefined) return true;
    if (pending !== this.late) return false;
    if (canUseSame) return true;
    const tried = [...this.avoided, failed].map(({ address }) => address);
    const other = this.hop.endpoints.choose([...this.avoided, failed]);
    return other !== undefined && !other.isEjected && !tried.includes(other.address);
  }

  private sendFirst(leftMs: number) {
    if (this.isRepeatable) this.startHedgeTimer(leftMs);
    else this.timer = setTimeout(onDeadline, leftMs, this);
    this.send('first');
    if (this.request.allowProbe !== false && !this.hasEnded) this.sendProbe();
  }

  private async sendAfterConnectionCheck() {
    const { breaker, checks, endpoints } = this.hop;
    try {
      await checks.waitForConnection(endpoints.rotated(), this.timeoutMs);
    } catch (error) {
      return this.fail('destination_unavailable', error ?? endpoints.lookupError);
    }
    if (this.hasEnded) return;
    this.admittedMs = performance.now();
    this.admission = breaker.admit(this.admittedMs);
    if (this.admission === 'pass' || this.admission === 'probe') this.sendFirst(this.leftMs());
    else this.fail('destination_unavailable');
  }

  private leftMs() {
    return Math.max(0, this.startedMs + this.timeoutMs - performance.now());
  }

  private startHedgeTimer(leftMs: number) {
    this.hedgeDelayMs = Math.min(this.hop.hedgeDelay.ms, this.timeoutMs / 4);
    this.timer = setTimeout(onHedgeTimer, Math.min(this.hedgeDelayMs, leftMs), this);
  }

  private send(kind: AttemptKind, usesNewConnection = false) {
    const endpoint = this.hop.endpoints.choose(this.avoided);
    if (endpoint === undefined) return this.awaitLookup(kind);
    const attempt = new Attempt(this, endpoint, kind, ++this.attempts, usesNewConnection);
    this.inFlight.push(attempt);
    attempt.send();
  }

  private awaitLookup(kind: AttemptKind) {
    const lookedUp = (error?: unknown) => {
      // The late attempt may have a response in the meantime.
      if (this.hasEnded || this.winner !== undefined) return;
      // A later lookup may have succeeded while this one failed.
      if (this.hop.endpoints.choose() !== undefined) this.send(kind);
      else if (this.inFlight.length === 0) this.fail(lookupErrorCode(error), error);
    };
    this.hop.endpoints.lookup().then(() => lookedUp(), lookedUp);
  }

  private canRetry(attempt: Attempt, code: NextHopErrorCode) {
    if (this.winner !== undefined || this.retries >= MAX_RETRIES) return false;
    return this.isRepeatable ? CONNECTION_FAILURES.has(code) : this.canConnectElsewhere(attempt, code);
  }

  // A request of any method can be sent to another endpoint if no byte of it has been sent.
  private canConnectElsewhere(attempt: Attempt, code: NextHopErrorCode) {
    if (attempt.wasSent || !NO_CONNECTION.has(code) || !isReusable(this.request.body)) return false;
    return this.canUseOther(attempt.endpoint);
  }

  private canUseOther(failed: Endpoint) {
    const other = this.hop.endpoints.choose([...this.avoided, failed]);
    return other !== undefined && other.address !== failed.address && !other.isEjected;
  }

  private avoid(endpoint: Endpoint) {
    this.avoided = [...this.avoided, endpoint];
  }

  private withdrawRetry() {
    return this.retries < MAX_RETRIES && this.hop.budget.withdraw(performance.now());
  }

  // After a closed keep-alive connection, retry immediately over a new connection.
  private retry(failed: Attempt, code: NextHopErrorCode) {
    const wasIdle = mayHaveBeenIdle(failed, code);
    // With only two endpoints, the other one is late, so don't avoid this one.
    if (!wasIdle || this.inFlight.length === 0) this.avoid(failed.endpoint);
    if (!wasIdle) return this.retryAfterJitter(failed.endpoint);
    this.retries++;
    this.send('retry', true);
  }

  private retryAfterJitter(failed: Endpoint) {
    this.retries++;
    const jitterMs = this.canUseOther(failed) ? JITTER_MS.other : JITTER_MS.same;
    this.isRetryScheduled = true;
    const retryNow = () => {
      this.isRetryScheduled = false;
      // The late attempt may have a response in the meantime.
      if (!this.hasEnded && this.winner === undefined) this.send('retry');
    };
    setTimeout(retryNow, Math.random() * jitterMs * this.retries);
  }

  private recordEndpointFailure(attempt: Attempt, code: NextHopErrorCode, nowMs: number) {
    const { endpoint } = attempt;
    const { endpoints } = this.hop;
    if (ENDPOINT_FAILURES.has(code)) return endpoints.failed(endpoint, nowMs);
    if (!CONNECTION_FAILURES.has(code)) return;
    if (mayHaveBeenIdle(attempt, code)) endpoints.closedConnection(endpoint, nowMs);
    else endpoint.eject(nowMs);
    endpoints.refresh();
  }

  private cancelOthers(winner: Attempt, nowMs: number) {
    for (const attempt of this.inFlight) {
      if (attempt.number < winner.number && !attempt.isQueued) this.recordSlow(attempt, nowMs);
      if (attempt !== winner) attempt.cancel();
    }
    this.inFlight = [winner];
  }

  // The hedge has already recorded a warning, so an attempt that a later one overtakes counts twice. Its time so far
  // is recorded because the hedge delay would otherwise not adapt to a next hop that has become slow.
  private recordSlow(attempt: Attempt, nowMs: number) {
    attempt.endpoint.suspect();
    if (attempt.wasSent) this.hop.hedgeDelay.record(nowMs - attempt.sentMs);
  }

  // The probe is a copy of this request, or a HEAD request for its path if it must not be repeated.
  private sendProbe() {
    const endpoint = this.hop.endpoints.dueForProbe(this.startedMs);
    if (endpoint === undefined || !this.hop.budget.withdrawProbe(this.startedMs)) return;
    // An ejected endpoint may be healthy, but slower than a quarter of the deadline.
    const deadlineMs = Math.min(this.timeoutMs, this.hop.timeoutMs);
    const timeoutMs = endpoint.isEjected ? deadlineMs : deadlineMs / 4;
    endpoint.startProbe(timeoutMs);
    this.hop.observer.probeStarted?.(endpoint.address);
    const { isRepeatable, request, origin, path } = this;
    const probe = isRepeatable ? { ...request, origin } : { origin, path, method: 'HEAD' as const };
    new Probe(timeoutMs, this.hop.hasFactory, (status) => {
      if (isUsable(status)) endpoint.probeSucceeded();
      else endpoint.probeFailed(performance.now());
    }).send(probe, endpoint.connections);
  }

  // An error of the request body stream is the caller's own and ends the exchange.
  private watchBody() {
    const { body } = this.request;
    if (body === null || typeof body !== 'object') return;
    const stream = 'on' in body ? body : streamOf(body);
    stream?.on('error', (error) => this.reject(error));
    this.bodyStream = stream as Readable | undefined;
    if (stream !== undefined && stream !== body) this.request = { ...this.request, body: stream };
  }

  // undici reports a body stream that the caller destroyed as aborted, but uses that code for proxies, too.
  private isBodyDestroyed(error: Error) {
    const { bodyStream } = this;
    const { code } = error as NodeJS.ErrnoException;
    return code === 'UND_ERR_ABORTED' && bodyStream?.destroyed === true && !bodyStream.readableEnded;
  }

  // Reaching the connection limit says nothing about the health of the next hop.
  private fail(
    code: NextHopErrorCode,
    cause?: unknown,
    isNextHopFailure = code !== 'connection_limit_reached',
  ) {
    if (this.hasEnded) return;
    if (!isNextHopFailure) this.hop.breaker.cancel(this.admission, this.admittedMs);
    else
      this.hop.breaker.record(
        this.admission,
        true,
        performance.now(),
        !NO_CONNECTION.has(code),
        this.admittedMs,
      );
    const error = new NextHopError(code, this.hop.name, { cause, statusCode: this.statusCode });
    this.end(error);
    this.reportError(error);
  }

  reject(error: Error) {
    if (this.hasEnded) return;
    this.hop.breaker.cancel(this.admission, this.admittedMs);
    this.end(undefined, true);
    this.reportError(error);
  }

  private end(error?: NextHopError, isCancelled = false) {
    this.hasEnded = true;
    clearTimeout(this.timer);
    // undici destroys the body of a request that it sends. This one is never sent.
    if (this.attempts === 0 || this.inFlight.some(({ wasSent }) => !wasSent)) this.bodyStream?.destroy();
    for (const attempt of this.inFlight) attempt.cancel(error?.code);
    this.hop.observer.exchangeEnded?.(this, error, isCancelled);
    this.hop.active.delete(this);
    if (this.hop.active.size === 0) this.hop.onIdle?.();
  }

  private reportError(error: Error) {
    try {
      this.handler.onResponseError?.(this, error);
    } catch {
      // The exchange has ended. An error that a handler throws here must not affect other requests.
    }
  }

  private remove(attempt: Attempt) {
    this.inFlight = this.inFlight.filter((other) => other !== attempt);
  }
}

function isUsable(status: number | undefined) {
  return status !== undefined && !isGatewayError(status);
}

// undici does not report whether a connection that closed without a byte was an idle keep-alive connection.
function mayHaveBeenIdle({ usesNewConnection }: Attempt, code: NextHopErrorCode) {
  return code === 'connection_terminated' && !usesNewConnection;
}

// undici treats an empty string or buffer as no body; @fastify/reply-from sends one with each GET.
function isEmpty(body: Dispatcher.DispatchOptions['body']) {
  return body === null || body === undefined || (body as { length?: number }).length === 0;
}

// undici destroys a stream when its request fails.
function isReusable(body: Dispatcher.DispatchOptions['body']) {
  return isEmpty(body) || typeof body === 'string' || ArrayBuffer.isView(body);
}

// undici accepts any iterable as a body, although its types don't say so.
function streamOf(body: object): Readable | undefined {
  return Symbol.asyncIterator in body || 'next' in body
    ? Readable.from(body as unknown as Iterable<unknown>)
    : undefined;
}

// undici validates the request itself, in part only when it has a connection. Some invalid headers cause a `TypeError`
// without a code.
function isCallerError(error: Error, { wasSent }: Attempt) {
  const { code, name } = error as NodeJS.ErrnoException;
  if (code !== undefined) return CALLER_ERROR_CODES.has(code);
  return name === 'TypeError' && !wasSent && !connectionErrors.has(error);
}

// Named functions, so that a timer needs no closure.
function onHedgeTimer(exchange: Exchange) {
  exchange.onHedgeTimer();
}

function hedgeIfLate(exchange: Exchange) {
  exchange.hedgeIfLate();
}

// If this process was busy, the response may have arrived already. As in `Exchange.onHedgeTimer`, it is read first.
function onDeadline(exchange: Exchange) {
  setImmediate(endAfterDeadline, exchange);
}

function endAfterDeadline(exchange: Exchange) {
  exchange.endAfterDeadline();
}
