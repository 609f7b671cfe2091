import type { LookupAddress } from 'node:dns';
import type { LookupFunction, Socket } from 'node:net';
import { buildConnector, type Dispatcher, errors, Pool } from 'undici';
import type { Logger } from '../logger';
import type { MeasuredHop, Metrics } from '../metrics';
import type { ServerSpan } from '../tracing';
import { Addresses, type Lookup } from './addresses';
import type { Answer } from './answer';
import { CircuitBreaker } from './circuit-breaker';
import { Exchange, type Hop } from './exchange';
import { type CallerLeft, HopFailure } from './failure';
import { RetryBudget } from './retry-budget';

// Both services keep idle connections longer as servers than this, so that it is the client that closes them.
const IDLE_CONNECTION_MS = 30_000;
const MAX_BODY_BYTES = 1024 * 1024;

export interface NextHopOptions {
  /** Names the next hop in logs, metrics and `Proxy-Status`. */
  name: string;
  /** Scheme, host and port, such as `http://api2:8080`. */
  origin: string;
  /** For the whole exchange, retries and body included. A connect attempt gets a quarter of it. */
  timeoutMs: number;
  /** The most connections, all addresses together. */
  connections: number;
  maxBodyBytes?: number;
  lookup?: Lookup;
  /** Carries the requests in place of the client's own connections: for tests, and for proxies. */
  dispatcher?: Dispatcher;
  log: Logger;
  metrics?: Metrics;
}

/** The request that an exchange is made for, as far as the exchange needs it. */
export interface Caller {
  once(event: 'close', listener: () => void): unknown;
  readonly locals: { record: HopRecord };
}

/** What the caller passes on, and what it is told for its log line. */
export interface HopRecord {
  /** The headers that go to the next hop, names and values in turn. */
  readonly passedOn: string[];
  readonly span: ServerSpan | undefined;
  nextHopEnded(
    nextHop: string,
    durationMs: number,
    answer: Answer | undefined,
    failure: HopFailure | undefined,
  ): void;
}

/**
 * The client of one next hop: deadline, bounded connections, spreading over its addresses, safe
 * retries, hedging, and a circuit breaker. It owns its connections until `close`.
 */
export class NextHop implements MeasuredHop {
  private readonly hop: Hop;
  private readonly origin: URL;
  private readonly metrics: Metrics | undefined;

  constructor(options: NextHopOptions) {
    const { name, timeoutMs, log, metrics } = options;
    this.metrics = metrics;
    this.origin = new URL(options.origin);
    this.hop = {
      name,
      timeoutMs,
      maxBodyBytes: options.maxBodyBytes ?? MAX_BODY_BYTES,
      addresses: new Addresses({
        hostname: this.origin.hostname,
        connections: options.connections,
        lookup: options.dispatcher ? notLookedUp : options.lookup,
        open: (address, connections) => options.dispatcher ?? this.openPool(address, connections),
      }),
      budget: new RetryBudget(),
      breaker: new CircuitBreaker((circuit) => log.warn({ nextHop: name, circuit }, 'circuit changed')),
      onRepeat: (kind) => {
        metrics?.requestRepeated(name, kind);
        log.debug({ nextHop: name, kind }, 'request repeated');
      },
    };
    metrics?.watch(this);
  }

  get name() {
    return this.hop.name;
  }

  get circuit() {
    return this.hop.breaker.state;
  }

  get connections() {
    return this.hop.addresses.connections;
  }

  /**
   * Asks for `path` and reads the answer whole. When the caller closes first, the request is cancelled.
   * @throws {HopFailure} when there is no usable answer, {CallerLeft} when the caller closed first
   */
  get(path: string, caller: Caller): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const { record } = caller.locals;
      const startedMs = performance.now();
      const request = { origin: this.origin, path, method: 'GET', headers: record.passedOn } as const;
      const exchange = new Exchange(this.hop, request, record.span, (failure, answer) => {
        this.ended(record, performance.now() - startedMs, answer, failure);
        if (answer === undefined) reject(failure);
        else resolve(answer);
      });
      caller.once('close', () => exchange.abandon());
      exchange.start();
    });
  }

  /** Closes every connection; what is under way on one ends by its own deadline. */
  async close() {
    await this.hop.addresses.close();
  }

  private ended(
    record: HopRecord,
    durationMs: number,
    answer: Answer | undefined,
    failure: HopFailure | CallerLeft | undefined,
  ) {
    const told = failure instanceof HopFailure ? failure : undefined;
    record.nextHopEnded(this.name, durationMs, answer, told);
    // Of an exchange that its caller gave up, no duration tells anything.
    if (answer || told) this.metrics?.exchangeEnded(this.name, answer?.status, told?.type ?? '', durationMs);
  }

  private openPool(address: LookupAddress, connections: number) {
    return new Pool(this.origin, {
      connections,
      pipelining: 1,
      keepAliveTimeout: IDLE_CONNECTION_MS,
      keepAliveMaxTimeout: IDLE_CONNECTION_MS,
      // The exchange has one deadline over everything.
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: connectTo(address, this.hop.timeoutMs / 4),
    });
  }
}

// Where a given dispatcher connects to is its own matter.
const notLookedUp: Lookup = async (hostname) => [{ address: hostname, family: 0 }];

// undici's own connect time-out is only precise to a second.
function connectTo({ address, family }: LookupAddress, timeoutMs: number): buildConnector.connector {
  const lookup: LookupFunction = (_hostname, options, callback) =>
    options.all ? callback(null, [{ address, family }]) : callback(null, address, family);
  const connect = buildConnector({ timeout: 0, allowH2: false, lookup });
  return (options, callback) => {
    const socket = connect(options, (...result) => {
      clearTimeout(timer);
      callback(...result);
    }) as unknown as Socket;
    const timer = setTimeout(() => socket.destroy(new errors.ConnectTimeoutError()), timeoutMs);
  };
}
