import type { Dispatcher } from 'undici';
import type { CircuitBreaker } from './circuit-breaker';
import type { ConnectionChecks } from './connection-checks';
import type { EndpointPool } from './endpoint-pool';
import type { HedgeDelay } from './hedge-delay';
import type { Observer } from './observer';
import type { RetryBudget } from './retry-budget';

/** The state that the exchanges of one `NextHop` share. */
export interface Hop {
  readonly name: string;
  readonly origin: URL;
  readonly timeoutMs: number;
  /** Whether the option `factory` was set. */
  readonly hasFactory: boolean;
  readonly endpoints: EndpointPool;
  readonly budget: RetryBudget;
  readonly hedgeDelay: HedgeDelay;
  readonly breaker: CircuitBreaker;
  readonly checks: ConnectionChecks;
  readonly observer: Observer;
  /** True while a connection error is being handled. A response that ends in the meantime was truncated. */
  isConnectionFailing: boolean;
  /** The exchanges that have not ended. */
  readonly active: ActiveExchanges;
  /** Called when the last active exchange ends. */
  onIdle: (() => void) | undefined;
}

export interface ExchangeOptions<Context = unknown> {
  /** Overrides the deadline of the `NextHop`, in milliseconds. */
  timeoutMs?: number;
  /** Whether a copy of the request may be sent as a probe. Default: true. */
  allowProbe?: boolean;
  /** Any value. The observer receives it as the `context` of the exchange. */
  context?: Context;
}

export interface NextHopRequestOptions extends Dispatcher.DispatchOptions, ExchangeOptions {}

/** The exchanges that have not ended. */
export class ActiveExchanges {
  private readonly exchanges: ActiveExchange[] = [];

  get size() {
    return this.exchanges.length;
  }

  add(exchange: ActiveExchange) {
    exchange.index = this.exchanges.length;
    this.exchanges.push(exchange);
  }

  // An array, because the old hash tables of a busy `Set` keep ended exchanges alive through minor garbage collections.
  delete(exchange: ActiveExchange) {
    const last = this.exchanges.pop();
    if (last === undefined || last === exchange) return;
    last.index = exchange.index;
    this.exchanges[exchange.index] = last;
  }

  /** Rejects all exchanges with `error`. */
  rejectAll(error: Error) {
    for (const exchange of [...this.exchanges]) exchange.reject(error);
  }
}

interface ActiveExchange {
  index: number;
  reject(error: Error): void;
}
