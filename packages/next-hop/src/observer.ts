import type { CircuitState } from './circuit-breaker';
import type { NextHopError, NextHopErrorCode } from './errors';

/** One exchange: a request and its response, with all attempts. Times are milliseconds of `performance.now()`. */
export interface ExchangeInfo<Context = unknown> {
  readonly nextHop: string;
  readonly origin: URL;
  readonly method: string;
  readonly path: string;
  /** The `context` option of the request. */
  readonly context: Context | undefined;
  readonly startedMs: number;
  /** The number of attempts sent so far, hedges included. */
  readonly attempts: number;
  /** The status of the response, once its headers have arrived. */
  readonly statusCode: number | undefined;
  /** Bytes of the response body so far. */
  readonly bodyBytes: number;
}

/** One attempt of an exchange. */
export interface AttemptInfo {
  /** 1 for the first attempt of the exchange. */
  readonly number: number;
  readonly kind: 'first' | 'retry' | 'hedge';
  /** The IP address that it was sent to. */
  readonly address: string;
  readonly startedMs: number;
  readonly statusCode: number | undefined;
}

/** `ok` for any response, `cancelled` if another attempt won or the caller cancelled the request. */
export type AttemptOutcome = 'ok' | 'cancelled' | NextHopErrorCode;

/**
 * Receives the events of a `NextHop`, for logs, metrics and traces. Every method is optional and is called
 * synchronously, so it must be fast and must not throw.
 */
export interface Observer<Context = unknown> {
  /** @returns headers to add to the attempt, such as trace context: alternating names and values */
  attemptStarted?(attempt: AttemptInfo, exchange: ExchangeInfo<Context>): readonly string[] | undefined;
  attemptEnded?(attempt: AttemptInfo, outcome: AttemptOutcome, exchange: ExchangeInfo<Context>): void;
  /** The headers of the response have arrived. */
  responseStarted?(exchange: ExchangeInfo<Context>): void;
  /**
   * @param error why there is no usable response; undefined on success, and if the caller cancelled the request
   * @param isCancelled whether the caller cancelled the request
   */
  exchangeEnded?(
    exchange: ExchangeInfo<Context>,
    error: NextHopError | undefined,
    isCancelled: boolean,
  ): void;
  /**
   * A probe was sent to an address. A probe is a copy of a request and not one of the attempts of its exchange.
   */
  probeStarted?(address: string): void;
  /** The retry budget did not allow a retry or hedge. */
  budgetExhausted?(): void;
  circuitChanged?(state: CircuitState): void;
}
