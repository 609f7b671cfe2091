import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import type { Endpoint } from './endpoint';
import { errorCode, isGatewayError, NextHopError, type NextHopErrorCode } from './errors';
import { withHeaders } from './headers';
import type { Hop, NextHopRequestOptions } from './hop';
import type { AttemptInfo, AttemptOutcome, ExchangeInfo } from './observer';

export type AttemptKind = AttemptInfo['kind'];

const MAX_DISCARDED_BYTES = 64 * 1024;
const CANCELLED = new Error('cancelled');

/** The part of an exchange that its attempts use. */
export interface AttemptOwner extends ExchangeInfo {
  readonly hop: Hop;
  readonly request: NextHopRequestOptions;
  readonly timeoutMs: number;
  rawHeaders: RawHeaders;
  rawTrailers: RawHeaders;
  /** Called when an attempt that had to wait for a connection is sent. */
  leftQueue(): void;
  /** Whether a request may be sent more than once. */
  readonly isRepeatable: boolean;
  /** Ends the exchange if its deadline has passed and `attempt`, which has not been sent, is its only one. */
  endIfExpired(attempt: Attempt): void;
  informationReceived(statusCode: number, headers: IncomingHttpHeaders, statusMessage?: string): void;
  responseStarted(
    attempt: Attempt,
    statusCode: number,
    headers: IncomingHttpHeaders,
    statusMessage?: string,
  ): void;
  dataReceived(chunk: Buffer): void;
  responseEnded(attempt: Attempt, trailers: IncomingHttpHeaders): void;
  attemptFailed(attempt: Attempt, code: NextHopErrorCode, error: Error): void;
  /** Ends the exchange with an error that says nothing about the next hop. */
  reject(error: Error): void;
  /** @returns whether the response of this attempt, a 502, 503 or 504, must be discarded */
  retryOnOtherEndpoint(attempt: Attempt): boolean;
}

export type RawHeaders = Exclude<Dispatcher.DispatchController['rawHeaders'], undefined>;

/** One attempt of an exchange: undici's handler for a request to one endpoint. */
export class Attempt implements Dispatcher.DispatchHandler, AttemptInfo {
  readonly startedMs = performance.now();
  statusCode: number | undefined;
  private controller: Dispatcher.DispatchController | undefined;
  private headers: IncomingHttpHeaders | undefined;
  private discardedBytes = 0;
  private hasEnded = false;
  private isCancelled = false;
  /** Only the status is used. The body is read and discarded, so that the connection can be reused. */
  private isDiscarding = false;
  private readonly wasEndpointBusy: boolean;
  private queuedMs = 0;

  constructor(
    private readonly exchange: AttemptOwner,
    readonly endpoint: Endpoint,
    readonly kind: AttemptKind,
    readonly number: number,
    readonly usesNewConnection: boolean,
  ) {
    this.wasEndpointBusy = endpoint.isBusy;
  }

  get address() {
    return this.endpoint.address;
  }

  send() {
    const { exchange, endpoint, usesNewConnection } = this;
    endpoint.requestStarted();
    const added = exchange.hop.observer.attemptStarted?.(this, exchange);
    const request = added === undefined ? exchange.request : withHeaders(exchange.request, added);
    try {
      if (usesNewConnection) endpoint.newConnections.dispatch({ ...request, reset: true }, this);
      else endpoint.connections.dispatch(request, this);
    } catch (error) {
      // A dispatcher of `factory` may reject a request by throwing, such as undici's MockAgent and ProxyAgent.
      this.isCancelled = true;
      this.end('proxy_internal_error');
      exchange.reject(error as Error);
    }
  }

  /** Cancels the attempt. A queued attempt is cancelled when it gets a connection. */
  cancel(outcome: AttemptOutcome = 'cancelled') {
    this.isCancelled = true;
    this.end(outcome);
    this.controller?.abort(CANCELLED);
  }

  pause() {
    this.controller?.pause();
  }

  resume() {
    this.controller?.resume();
  }

  /** Whether all connections were busy when the attempt was sent and it is still waiting for one. */
  get isQueued() {
    return this.wasEndpointBusy && this.controller === undefined;
  }

  get wasSent() {
    return this.controller !== undefined;
  }

  /** When the request was sent, or is assumed to have been sent if it is still waiting for a connection. */
  get sentMs() {
    return this.startedMs + this.queuedMs;
  }

  /** The error code if the deadline passes now. */
  timeoutCode(): NextHopErrorCode {
    if (this.controller === undefined)
      return this.wasEndpointBusy ? 'connection_limit_reached' : 'connection_timeout';
    // `connection_limit_reached` tells callers that nothing was sent, so a POST that was sent must not get it.
    const { isRepeatable, timeoutMs } = this.exchange;
    return isRepeatable && this.queuedMs > timeoutMs / 2
      ? 'connection_limit_reached'
      : 'http_response_timeout';
  }

  onRequestStart(controller: Dispatcher.DispatchController) {
    // After the deadline, the caller may send the request again, so it must not be sent now.
    if (!this.isCancelled) this.exchange.endIfExpired(this);
    this.controller = controller;
    if (this.wasEndpointBusy) this.queuedMs = performance.now() - this.startedMs;
    if (this.isCancelled) this.discardRequest(controller);
    else if (this.wasEndpointBusy) this.exchange.leftQueue();
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: IncomingHttpHeaders,
    statusMessage?: string,
  ) {
    if (this.isCancelled) return;
    const { exchange } = this;
    exchange.rawHeaders = controller.rawHeaders ?? null;
    if (statusCode < 200) return exchange.informationReceived(statusCode, headers, statusMessage);
    this.statusCode = statusCode;
    this.headers = headers;
    if (isGatewayError(statusCode)) {
      exchange.hop.endpoints.failed(this.endpoint, performance.now());
      if (exchange.retryOnOtherEndpoint(this)) return this.discard();
    }
    exchange.responseStarted(this, statusCode, headers, statusMessage);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer) {
    if (this.isDiscarding) {
      this.discardedBytes += chunk.length;
      if (this.discardedBytes > MAX_DISCARDED_BYTES) this.stopDiscarding();
    } else if (!this.isCancelled) this.exchange.dataReceived(chunk);
  }

  onResponseEnd(controller: Dispatcher.DispatchController, trailers: IncomingHttpHeaders) {
    if (this.isDiscarding || this.isCancelled) return this.end('ok');
    if (this.wasTruncated())
      return this.fail(new NextHopError('http_response_incomplete', this.exchange.nextHop));
    this.end('ok');
    this.exchange.rawTrailers = controller.rawTrailers ?? null;
    this.exchange.responseEnded(this, trailers);
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error) {
    if (this.isDiscarding || this.isCancelled) return this.end('ok');
    this.fail(error);
  }

  // Unlike `abort`, an exception keeps the connection open for other requests. A custom dispatcher may not catch it.
  private discardRequest(controller: Dispatcher.DispatchController) {
    if (!this.exchange.hop.hasFactory) throw CANCELLED;
    controller.abort(CANCELLED);
  }

  stopDiscarding() {
    this.cancel('ok');
  }

  // undici treats a connection reset as the normal end of a body without a length.
  private wasTruncated() {
    if (!this.exchange.hop.isConnectionFailing) return false;
    const { 'content-length': length, 'transfer-encoding': coding } = this.headers ?? {};
    return length === undefined && coding === undefined;
  }

  private discard() {
    this.isDiscarding = true;
    setTimeout(stopDiscarding, this.exchange.hop.timeoutMs / 4, this).unref();
  }

  private fail(error: Error) {
    const code = error instanceof NextHopError ? error.code : errorCode(error, this.statusCode !== undefined);
    this.isCancelled = true;
    this.end(code);
    this.exchange.attemptFailed(this, code, error);
  }

  private end(outcome: AttemptOutcome) {
    if (this.hasEnded) return;
    this.hasEnded = true;
    this.endpoint.inFlight--;
    this.exchange.hop.observer.attemptEnded?.(this, outcome, this.exchange);
  }
}

// A named function, so that the timer needs no closure.
function stopDiscarding(attempt: Attempt) {
  attempt.stopDiscarding();
}
