import type { LookupAddress } from 'node:dns';
import type { IncomingHttpHeaders } from 'node:http';
import type { LookupFunction, Socket } from 'node:net';
import type { buildConnector as BuildConnector, Dispatcher } from 'undici';
import type { Logger } from '../logger';
import type { MeasuredHop, Metrics } from '../metrics';
import type { ServerSpan } from '../tracing';
import { Addresses, type Lookup } from './addresses';
import type { Answer } from './answer';
import { CircuitBreaker } from './circuit-breaker';
import { Exchange, type Hop, type HopRequest, type Sink } from './exchange';
import { type CallerLeft, HopFailure } from './failure';
import { RetryBudget } from './retry-budget';
import { type Awaited, type Settle, SharedExchanges } from './shared-exchanges';
import { buildConnector, errors, Pool } from './undici';

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
  /** Whether callers of `get` that ask for the same path at the same time share one exchange. */
  collapse?: boolean;
  /** Whether request id and trace context go along; they are not for the hosts of others. */
  passesOn?: boolean;
  lookup?: Lookup;
  lookupEveryMs?: number;
  /** Carries the requests in place of the client's own connections: for tests, and for proxies. */
  dispatcher?: Dispatcher;
  log: Logger;
  metrics?: Metrics;
}

/** The request that an exchange is made for: what it passes on, and what it is told for its log line. */
export interface HopRecord {
  /** The headers that go to the next hop, names and values in turn. */
  readonly passedOn: string[];
  readonly span: ServerSpan | undefined;
  /** Is to abandon it when its client leaves. */
  awaits(exchange: Awaited): void;
  nextHopBegan(nextHop: string, durationMs: number): void;
  nextHopEnded(
    nextHop: string,
    durationMs: number,
    answer: Answer | undefined,
    failure: HopFailure | undefined,
  ): void;
}

/** A request to forward, its body whole. */
export interface ForwardedRequest {
  method: string;
  path: string;
  /** Names and values in turn, beside those that the caller's record passes on. */
  headers: string[];
  body: Buffer | undefined;
}

/**
 * The client of one next hop: deadline, bounded connections, spreading over its addresses, safe
 * retries, hedging, and a circuit breaker. It owns its connections until `close`.
 */
export class NextHop implements MeasuredHop {
  private readonly hop: Hop;
  private readonly origin: URL;
  private readonly metrics: Metrics | undefined;
  private readonly shared: SharedExchanges | undefined;

  constructor(options: NextHopOptions) {
    const { name, timeoutMs, log, metrics } = options;
    this.metrics = metrics;
    this.origin = new URL(options.origin);
    this.hop = {
      name,
      timeoutMs,
      maxBodyBytes: options.maxBodyBytes ?? MAX_BODY_BYTES,
      passesOn: options.passesOn ?? true,
      addresses: new Addresses({
        hostname: this.origin.hostname,
        connections: options.connections,
        lookupEveryMs: options.lookupEveryMs,
        lookup: options.dispatcher ? notLookedUp : options.lookup,
        open: (address, connections) => options.dispatcher ?? this.openPool(address, connections),
      }),
      budget: new RetryBudget(),
      isConnectionFailing: false,
      breaker: new CircuitBreaker((circuit) => log.warn({ nextHop: name, circuit }, 'circuit changed')),
      onRepeat: (kind) => {
        metrics?.requestRepeated(name, kind);
        log.debug({ nextHop: name, kind }, 'request repeated');
      },
    };
    if (options.collapse) this.shared = new SharedExchanges();
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
   * Asks for `path` and reads the answer whole. It ends without one when it is abandoned.
   * @param headers names and values in turn, beside those that the caller's record passes on
   * @throws {HopFailure} when there is no usable answer, {CallerLeft} when it was abandoned
   */
  get(path: string, record: HopRecord, headers: string[] = NO_HEADERS): Promise<Answer> {
    const passedOn = this.headersFor(record, headers);
    const request: HopRequest = { origin: this.origin, path, method: 'GET', headers: passedOn, body: null };
    const begin = (settle: Settle) => new Exchange(this.hop, request, record.span, undefined, settle).start();
    const { shared } = this;
    return this.waitFor(record, (settle) => (shared ? shared.join(path, settle, begin) : begin(settle)));
  }

  /**
   * Forwards a request, and its response to `sink` while it arrives. Resolves when the response is whole.
   * It ends without one when it is abandoned.
   * @throws {HopFailure} when there is no usable answer, or it broke off, {CallerLeft} when it was abandoned
   */
  forward({ method, path, headers, body }: ForwardedRequest, record: HopRecord, sink: Sink): Promise<Answer> {
    const passedOn = this.headersFor(record, headers);
    const request: HopRequest = { origin: this.origin, path, method, headers: passedOn, body: body ?? null };
    const timed = this.timed(sink, record, performance.now());
    return this.waitFor(record, (settle) =>
      new Exchange(this.hop, request, record.span, timed, settle).start(),
    );
  }

  /** Closes every connection; what is under way on one ends by its own deadline. */
  async close() {
    await this.hop.addresses.close();
  }

  private waitFor(record: HopRecord, begin: (settle: Settle) => Awaited): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const startedMs = performance.now();
      const awaited = begin((failure, answer) => {
        this.ended(record, performance.now() - startedMs, answer, failure);
        if (answer === undefined) reject(failure);
        else resolve(answer);
      });
      record.awaits(awaited);
    });
  }

  // The answer's own headers tell how long it took until it began.
  private timed(sink: Sink, record: HopRecord, startedMs: number): Sink {
    return {
      begin: (status: number, headers: IncomingHttpHeaders) => {
        record.nextHopBegan(this.name, performance.now() - startedMs);
        sink.begin(status, headers);
      },
      write: (chunk, onDrained) => sink.write(chunk, onDrained),
      end: () => sink.end(),
    };
  }

  private headersFor(record: HopRecord, own: string[]) {
    if (!this.hop.passesOn) return own;
    return own.length === 0 ? record.passedOn : [...record.passedOn, ...own];
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

  private connectionFails() {
    this.hop.isConnectionFailing = true;
    queueMicrotask(() => {
      this.hop.isConnectionFailing = false;
    });
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
      connect: connectTo(address, this.hop.timeoutMs / 4, () => this.connectionFails()),
    });
  }
}

const NO_HEADERS: string[] = [];

// Where a given dispatcher connects to is its own matter.
const notLookedUp: Lookup = async (hostname) => [{ address: hostname, family: 0 }];

// undici's own connect time-out is only precise to a second.
function connectTo(
  { address, family }: LookupAddress,
  timeoutMs: number,
  onError: () => void,
): BuildConnector.connector {
  const lookup: LookupFunction = (_hostname, options, callback) =>
    options.all ? callback(null, [{ address, family }]) : callback(null, address, family);
  const connect = buildConnector({ timeout: 0, allowH2: false, lookup });
  return (options, callback) => {
    const socket = connect(options, (...result) => {
      clearTimeout(timer);
      callback(...result);
    }) as unknown as Socket;
    socket.once('error', onError);
    const timer = setTimeout(() => socket.destroy(new errors.ConnectTimeoutError()), timeoutMs);
  };
}
