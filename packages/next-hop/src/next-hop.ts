import type { LookupAddress } from 'node:dns';
import { buildConnector, Dispatcher, errors, Pool } from 'undici';
import { CircuitBreaker, type CircuitState } from './circuit-breaker';
import { ConnectionAttempts } from './connection-attempts';
import { ConnectionChecks, type TryToConnect } from './connection-checks';
import { EndpointPool, type Lookup } from './endpoint-pool';
import { errorCode, NO_CONNECTION } from './errors';
import { Exchange } from './exchange';
import { type AbortSignalLike, CompletedResponses, GetHandler } from './get';
import { HedgeDelay } from './hedge-delay';
import { ActiveExchanges, type ExchangeOptions, type Hop, type NextHopRequestOptions } from './hop';
import { adaptHandler, type LegacyHandler } from './legacy-handler';
import type { Observer } from './observer';
import type { WholeResponse } from './response';
import { RetryBudget } from './retry-budget';

const TIMEOUT_MS = 2000;
const CONNECTIONS = 64;
const MAX_BODY_BYTES = 1024 * 1024;
// Node fires a timer with a longer delay immediately.
const MAX_TIMER_MS = 2 ** 31 - 1;
// Servers should keep idle connections longer, so that the client closes them first.
const IDLE_CONNECTION_MS = 30_000;

export interface NextHopOptions<Context = unknown> {
  /** The name of the next hop in errors and for the observer. Default: the host name of the origin. */
  name?: string;
  /** The deadline of each exchange in milliseconds, retries and body included. Default: 2000. */
  timeoutMs?: number;
  /** The maximum number of connections to all addresses together. Default: 64. */
  connections?: number;
  /**
   * Options of `net.connect` and `tls.connect`, such as `ca`, `cert` and `key`, or a connector, as for undici's
   * pools. A connector gets the address in `hostname` and the name in `host`.
   */
  connect?: buildConnector.BuildOptions | buildConnector.connector;
  /** Resolves the host name. Default: all addresses of `dns.lookup`. */
  lookup?: Lookup;
  /** How often the host name is resolved again, in milliseconds. Default: 2000. */
  lookupIntervalMs?: number;
  /** Receives the events of exchanges, attempts and the circuit breaker. */
  observer?: Observer<Context>;
  /**
   * Returns a dispatcher with at most `connections` connections to one address, instead of an undici `Pool`, for
   * proxies and tests. With a factory, the host name is resolved only if `lookup` is given.
   */
  factory?: (origin: URL, options: { address: LookupAddress; connections: number }) => Dispatcher;
}

export interface GetOptions<Context = unknown> extends ExchangeOptions<Context> {
  /** In a form that undici accepts, such as an object or a flat array of alternating names and values. */
  headers?: Dispatcher.DispatchOptions['headers'];
  signal?: AbortSignalLike;
  /** The maximum size of the response body. Default: 1 MiB. */
  maxBodyBytes?: number;
}

type RequestCallback<T> = (error: Error | null, data: Dispatcher.ResponseData<T>) => void;

/**
 * The client of one next hop, as an undici `Dispatcher`: one deadline for the whole exchange, load balancing over all
 * addresses of the host name, outlier ejection, safe retries, hedging, and a circuit breaker. It owns its connections
 * until `close` or `destroy`.
 */
export class NextHop<Context = unknown> extends Dispatcher {
  readonly origin: URL;
  private readonly hop: Hop;
  private readonly originText: string;
  private readonly completed = new CompletedResponses();
  private readonly attempts = new ConnectionAttempts(() => this.connectionFailed());
  private closing: Promise<void> | undefined;
  private destroying: Promise<void> | undefined;

  /**
   * @param origin scheme, host and port, such as `http://users:8080`
   * @throws {InvalidArgumentError} of undici if an argument is invalid
   */
  constructor(origin: string | URL, options: NextHopOptions<Context> = {}) {
    super();
    this.origin = parseOrigin(origin);
    this.originText = this.origin.origin;
    const { timeoutMs = TIMEOUT_MS, connections = CONNECTIONS, observer = {}, factory } = options;
    checkDuration('timeoutMs', timeoutMs);
    if (options.lookupIntervalMs !== undefined) checkDuration('lookupIntervalMs', options.lookupIntervalMs);
    checkFunction('lookup', options.lookup);
    checkFunction('factory', factory);
    if (!Number.isInteger(connections) || connections < 1)
      throw new errors.InvalidArgumentError('connections must be a positive integer');
    const breaker = new CircuitBreaker((state) => observer.circuitChanged?.(state), factory === undefined);
    this.hop = {
      name: options.name ?? this.origin.hostname,
      origin: this.origin,
      timeoutMs,
      hasFactory: factory !== undefined,
      endpoints: new EndpointPool({
        hostname: this.origin.hostname,
        connections,
        lookupIntervalMs: options.lookupIntervalMs,
        lookup: options.lookup ?? (factory && unresolved),
        checkConnection: factory ? undefined : (endpoint) => this.hop.checks.check(endpoint),
        open: (address, share) =>
          factory
            ? factory(this.origin, { address, connections: share })
            : this.openPool(address, share, options.connect),
      }),
      budget: new RetryBudget(() => observer.budgetExhausted?.()),
      hedgeDelay: new HedgeDelay(timeoutMs / 4),
      breaker,
      checks: new ConnectionChecks(
        this.tryToConnect(options.connect),
        timeoutMs / 4,
        (address, startedMs) => {
          this.hop.endpoints.readmit(address);
          breaker.connected(startedMs, performance.now());
        },
      ),
      observer: observer as Observer,
      isConnectionFailing: false,
      active: new ActiveExchanges(),
      onIdle: undefined,
    };
  }

  get name() {
    return this.hop.name;
  }

  get circuit(): CircuitState {
    return this.hop.breaker.state;
  }

  /** The statistics of undici's pools, by address. */
  get stats(): Readonly<Record<string, Pool.PoolStats>> {
    return this.hop.endpoints.stats;
  }

  /** The addresses that are ejected now. */
  get ejectedAddresses(): readonly string[] {
    return this.hop.endpoints.ejectedAddresses;
  }

  get closed() {
    return this.closing !== undefined;
  }

  get destroyed() {
    return this.destroying !== undefined;
  }

  override dispatch(
    options: NextHopRequestOptions,
    handler: Dispatcher.DispatchHandler | LegacyHandler,
  ): boolean {
    const adapted = adaptHandler(handler);
    const error = this.validateRequest(options);
    if (error !== undefined) {
      // As in undici, the controller is null: there is no request to control.
      adapted.onResponseError?.(null as unknown as Dispatcher.DispatchController, error);
      return false;
    }
    const request = this.hop.hasFactory || 'dispatcher' in options ? this.withOrigin(options) : options;
    new Exchange(this.hop, request, adapted).start();
    return true;
  }

  /**
   * Sends a GET request for `path` and reads the complete response, whatever its status. The promise resolves
   * at the end of the turn of the event loop in which the response is complete; it rejects immediately.
   * @throws {NextHopError} if there is no usable response; the reason of `signal` if it aborts; undici's
   *   `InvalidArgumentError` if an argument is invalid
   */
  get(path: string, options: GetOptions<Context> = {}): Promise<WholeResponse> {
    const {
      headers = null,
      signal,
      timeoutMs,
      maxBodyBytes = MAX_BODY_BYTES,
      context,
      allowProbe = true,
    } = options;
    return new Promise((resolve, reject) => {
      if (typeof maxBodyBytes !== 'number' || !(maxBodyBytes >= 0))
        throw new errors.InvalidArgumentError('maxBodyBytes must be a non-negative number');
      if (signal != null) checkSignal(signal);
      const handler = new GetHandler(this.hop.name, maxBodyBytes, signal, this.completed, resolve, reject);
      const request = {
        origin: this.originText,
        path,
        method: 'GET' as const,
        headers,
        body: null,
        context,
        allowProbe,
      };
      this.dispatch(timeoutMs === undefined ? request : { ...request, timeoutMs }, handler);
    });
  }

  // Overridden only to add the options of an exchange to the types.
  override request<T = null>(
    options: Dispatcher.RequestOptions<T> & ExchangeOptions<Context>,
  ): Promise<Dispatcher.ResponseData<T>>;
  override request<T = null>(
    options: Dispatcher.RequestOptions<T> & ExchangeOptions<Context>,
    callback: RequestCallback<T>,
  ): void;
  override request<T = null>(
    options: Dispatcher.RequestOptions<T>,
    callback?: RequestCallback<T>,
  ): Promise<Dispatcher.ResponseData<T>> | undefined {
    if (callback === undefined) return super.request(options);
    super.request(options, callback);
    return undefined;
  }

  override compose(...interceptors: Dispatcher.DispatcherComposeInterceptor[]): Dispatcher.ComposedDispatcher;
  override compose(interceptors: Dispatcher.DispatcherComposeInterceptor[]): Dispatcher.ComposedDispatcher;
  override compose(
    ...interceptors: (Dispatcher.DispatcherComposeInterceptor | Dispatcher.DispatcherComposeInterceptor[])[]
  ): Dispatcher.ComposedDispatcher {
    // Interceptors need the origin, which callers of a composed `NextHop` may leave out, and know undici 8's handlers.
    const adapt: Dispatcher.DispatcherComposeInterceptor = (dispatch) => (options, handler) =>
      dispatch(this.withOrigin(options), adaptHandler(handler));
    return super.compose(...interceptors.flat(), adapt);
  }

  /** Rejects new requests, and resolves when the active ones have ended and all connections are closed. */
  override close(): Promise<void>;
  override close(callback: () => void): void;
  override close(callback?: () => void): Promise<void> | undefined {
    this.closing ??= this.destroyed
      ? Promise.reject(new errors.ClientDestroyedError())
      : this.closeWhenIdle();
    if (callback === undefined) return this.closing;
    this.closing.then(callback, callback);
    return undefined;
  }

  /** Fails active requests with `error`, and closes all connections. */
  override destroy(): Promise<void>;
  override destroy(error: Error | null): Promise<void>;
  override destroy(callback: () => void): void;
  override destroy(error: Error | null, callback: () => void): void;
  override destroy(
    errorOrCallback?: Error | null | (() => void),
    callback?: () => void,
  ): Promise<void> | undefined {
    if (typeof errorOrCallback === 'function') return this.destroy(null, errorOrCallback) as undefined;
    this.destroying ??= this.destroyAll(errorOrCallback ?? new errors.ClientDestroyedError());
    if (callback === undefined) return this.destroying;
    this.destroying.then(callback);
    return undefined;
  }

  private destroyAll(error: Error) {
    this.hop.active.rejectAll(error);
    this.attempts.stop();
    return this.hop.endpoints.destroy(error);
  }

  private async closeWhenIdle() {
    if (this.hop.active.size > 0)
      await new Promise<void>((resolve) => {
        this.hop.onIdle = resolve;
      });
    // The pools can still have attempts of exchanges that have ended. Closing them would wait for these.
    this.destroying ??= this.destroyAll(new errors.ClientClosedError());
    await this.destroying;
  }

  private validateRequest(options: NextHopRequestOptions): Error | undefined {
    if (this.destroyed) return new errors.ClientDestroyedError();
    if (this.closed) return new errors.ClientClosedError();
    const { origin, upgrade, method, timeoutMs } = options;
    if (origin !== undefined && origin !== this.origin && !this.isOwnOrigin(String(origin)))
      return new errors.InvalidArgumentError(`origin must be ${this.originText}`);
    if (upgrade || method === 'CONNECT')
      return new errors.InvalidArgumentError('upgrade and CONNECT are not supported');
    if (timeoutMs !== undefined && !isDuration(timeoutMs))
      return new errors.InvalidArgumentError(durationMessage('timeoutMs'));
    return undefined;
  }

  // Dispatchers other than `Pool` need the origin. undici 7's `request` also forwards its `dispatcher` option, which
  // the pools of undici 8 reject.
  private withOrigin(options: NextHopRequestOptions & { dispatcher?: unknown }): NextHopRequestOptions {
    if (options.origin !== undefined && options.dispatcher === undefined) return options;
    return Object.assign({}, options, { origin: this.originText, dispatcher: undefined });
  }

  private isOwnOrigin(origin: string) {
    return origin === this.originText || URL.parse(origin)?.origin === this.originText;
  }

  private openPool({ address }: LookupAddress, connections: number, connect: NextHopOptions['connect']) {
    const connector = createConnector(connect);
    return new Pool(this.origin, {
      connections,
      pipelining: 1,
      // Otherwise, all requests over TLS wait for the first connection, which shows whether HTTP/2 is available.
      allowH2: false,
      keepAliveTimeout: IDLE_CONNECTION_MS,
      keepAliveMaxTimeout: IDLE_CONNECTION_MS,
      // The deadline of the exchange applies instead.
      headersTimeout: 0,
      bodyTimeout: 0,
      connect: (target, callback) =>
        this.attempts.start(connector, { ...target, hostname: address }, this.hop.timeoutMs / 4, callback),
    });
  }

  private tryToConnect(connect: NextHopOptions['connect']): TryToConnect {
    const connector = createConnector(connect);
    const { host, protocol, port } = this.origin;
    return (address, timeoutMs, callback) => {
      const target = { hostname: address, host, protocol, port };
      this.attempts.start(connector, target, timeoutMs, (error, socket) => {
        socket?.destroy();
        callback(error && isConnectFailure(error) ? error : null);
      });
    };
  }

  private connectionFailed() {
    this.hop.isConnectionFailing = true;
    queueMicrotask(() => {
      this.hop.isConnectionFailing = false;
    });
  }
}

// Any other error, such as an invalid certificate, shows that the address accepts connections.
function isConnectFailure(error: Error) {
  return error instanceof errors.ClientDestroyedError || NO_CONNECTION.has(errorCode(error, false));
}

const unresolved: Lookup = async (hostname) => [{ address: hostname, family: 0 }];

function createConnector(connect: NextHopOptions['connect']) {
  return typeof connect === 'function' ? connect : buildConnector({ ...connect, allowH2: false, timeout: 0 });
}

function parseOrigin(origin: string | URL) {
  const url = URL.parse(String(origin));
  const isOrigin = url?.pathname === '/' && url.search === '' && url.hash === '' && url.username === '';
  if (url === null || !isOrigin || !/^https?:$/.test(url.protocol))
    throw new errors.InvalidArgumentError('origin must be an http or https URL without a path');
  return url;
}

const durationMessage = (name: string) => `${name} must be positive and at most ${MAX_TIMER_MS}`;

function isDuration(ms: number) {
  return typeof ms === 'number' && ms > 0 && ms <= MAX_TIMER_MS;
}

function checkDuration(name: string, ms: number) {
  if (!isDuration(ms)) throw new errors.InvalidArgumentError(durationMessage(name));
}

function checkFunction(name: string, value: unknown) {
  if (value !== undefined && typeof value !== 'function')
    throw new errors.InvalidArgumentError(`${name} must be a function`);
}

function checkSignal({ addEventListener, removeEventListener }: AbortSignalLike) {
  if (typeof addEventListener !== 'function' || typeof removeEventListener !== 'function')
    throw new errors.InvalidArgumentError('signal must be an AbortSignal');
}
