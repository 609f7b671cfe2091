import type { LookupAddress } from 'node:dns';
import { lookup as systemLookup } from 'node:dns/promises';
import type { Dispatcher } from 'undici';
import { Endpoint } from './endpoint';

/** Resolves a host name to all of its addresses. */
export type Lookup = (hostname: string) => Promise<readonly LookupAddress[]>;

const LOOKUP_INTERVAL_MS = 2000;
const MIN_LOOKUP_INTERVAL_MS = 250;
const LOOKUP_TIMEOUT_MS = 1000;
const NONE: readonly Endpoint[] = [];
// Higher than the rank of any endpoint that is only in `avoid`.
const EJECTED_RANK = 100;
// A throttled endpoint has the same rank as a busy one, so the one with fewer requests in flight is chosen: a response
// that may be slow is better than waiting for a connection. This rank is lower than that of any endpoint in `avoid`.
const THROTTLED_OR_BUSY_RANK = 0.5;

export interface EndpointPoolOptions {
  hostname: string;
  /** The maximum number of connections to all addresses together. */
  connections: number;
  /** Returns a dispatcher with at most `connections` connections to one address; none is opened before it is needed. */
  open: (address: LookupAddress, connections: number) => Dispatcher;
  /**
   * Starts a connection check. Called when an endpoint is added to existing ones or connects slowly, and again at each
   * lookup until it is readmitted. The endpoint stays ejected until `readmit` is called or a probe succeeds. Without this
   * option, such endpoints get requests.
   */
  checkConnection?: ((endpoint: Endpoint) => void) | undefined;
  lookup?: Lookup | undefined;
  /** How often the name is resolved again. */
  lookupIntervalMs?: number | undefined;
}

/**
 * The endpoints of a host name, one for each address, and the choice among them. The name is resolved every few
 * seconds, and immediately when a connection fails.
 */
export class EndpointPool {
  private endpoints: Endpoint[] = [];
  /** Endpoints whose address is gone and that still have requests in flight. */
  private readonly retired = new Set<Endpoint>();
  private lastChosen = 0;
  private lookups = 0;
  private lastApplied = 0;
  private lastLookupMs = Number.NEGATIVE_INFINITY;
  /** The error of the last lookup, if it failed. */
  lookupError: unknown;
  private pendingLookup: Promise<void> | undefined;
  private readonly timer: NodeJS.Timeout;

  constructor(private readonly options: EndpointPoolOptions) {
    this.timer = setInterval(() => this.refresh(), options.lookupIntervalMs ?? LOOKUP_INTERVAL_MS).unref();
    this.refresh();
  }

  /**
   * Chooses the endpoint for the next attempt: the one with the fewest requests in flight. Ties go to the one that
   * responded most recently. If the tied endpoints have no requests in flight, they are used round-robin, or at random if
   * `avoid` is not empty. Ejected endpoints are used only if all are ejected. Endpoints in `avoid` are used only if all
   * others are ejected or also in `avoid`; the one that was added first is preferred. Throttled endpoints
   * are used only if all others are ejected, in `avoid`, busy or throttled. Returns undefined while no address is known.
   */
  choose(avoid: readonly Endpoint[] = NONE): Endpoint | undefined {
    const { endpoints } = this;
    const isFirstAttempt = avoid.length === 0;
    const start = isFirstAttempt ? this.nextIndex : Math.floor(Math.random() * endpoints.length);
    let best = start;
    for (let i = 1; i < endpoints.length; i++) {
      const index = (start + i) % endpoints.length;
      if (isBetter(endpoints[index] as Endpoint, endpoints[best] as Endpoint, avoid)) best = index;
    }
    // Continue after the chosen endpoint. Otherwise, the endpoint after an ejected one would get the share of both.
    if (isFirstAttempt) this.lastChosen = best;
    return endpoints[best];
  }

  /** Returns all endpoints, whatever their state, each time starting with another one. */
  rotated(): Endpoint[] {
    this.lastChosen = this.nextIndex;
    return [...this.endpoints.slice(this.lastChosen), ...this.endpoints.slice(0, this.lastChosen)];
  }

  /**
   * Returns an endpoint that is due for a probe. If all others are ejected, an endpoint gets requests anyway, and needs
   * no probe.
   */
  dueForProbe(nowMs: number): Endpoint | undefined {
    const { endpoints } = this;
    const areOthersEjected = (due: Endpoint) => endpoints.every((other) => other === due || other.isEjected);
    return endpoints.find((endpoint) => endpoint.isDueForProbe(nowMs) && !areOthersEjected(endpoint));
  }

  /** Ends the ejection of an address that has accepted a connection. */
  readmit(address: string) {
    this.endpoints.find((endpoint) => endpoint.address === address)?.readmit();
  }

  /** Records a failure of `endpoint`, or a response with 502, 503 or 504. */
  failed(endpoint: Endpoint, nowMs: number) {
    endpoint.failed(nowMs);
    this.ejectIfUnreliable(endpoint, nowMs);
  }

  /** Ejects an endpoint that has not accepted a connection within the hedge delay, until a check or a probe succeeds. */
  ejectUntilConnected(endpoint: Endpoint, nowMs: number) {
    const { checkConnection } = this.options;
    if (checkConnection === undefined || endpoint.isEjected) return;
    endpoint.ejectUntilConnected(nowMs);
    checkConnection(endpoint);
    this.refresh();
  }

  /** Records that `endpoint` closed a connection before it responded. */
  closedConnection(endpoint: Endpoint, nowMs: number) {
    endpoint.countFailure();
    endpoint.suspect();
    this.ejectIfUnreliable(endpoint, nowMs);
  }

  /**
   * Ejects `endpoint` if five of its last 20 requests failed, unless more than half of the endpoints would then be
   * ejected. If all endpoints fail occasionally, the remaining ones must not get all requests.
   */
  private ejectIfUnreliable(endpoint: Endpoint, nowMs: number) {
    if (!endpoint.isUnreliable) return;
    const others = this.endpoints.filter((other) => other !== endpoint && other.isEjected).length;
    if (others + 1 <= this.endpoints.length / 2) endpoint.eject(nowMs);
  }

  /**
   * Resolves the name, or joins a pending lookup. The result replaces the known addresses; a failure keeps them.
   * Rejects with the error of the lookup.
   */
  lookup(): Promise<void> {
    const nowMs = performance.now();
    // A resolver may hang for many seconds. A new lookup may succeed in the meantime.
    if (this.pendingLookup !== undefined && nowMs - this.lastLookupMs < LOOKUP_TIMEOUT_MS)
      return this.pendingLookup;
    this.lastLookupMs = nowMs;
    const lookup = this.resolve(++this.lookups).finally(() => {
      if (this.pendingLookup === lookup) this.pendingLookup = undefined;
    });
    this.pendingLookup = lookup;
    return lookup;
  }

  /** Resolves the name in the background, for later requests. */
  refresh() {
    if (this.pendingLookup === undefined && performance.now() - this.lastLookupMs < MIN_LOOKUP_INTERVAL_MS)
      return;
    // If no address is known, the waiting requests report the failure. Otherwise the known addresses are kept.
    this.lookup().catch(() => {});
  }

  /** Statistics by address. */
  get stats() {
    return Object.fromEntries(this.endpoints.map(({ address, stats }) => [address, stats]));
  }

  get ejectedAddresses() {
    return this.endpoints.filter(({ isEjected }) => isEjected).map(({ address }) => address);
  }

  /** Closes idle connections now, and others when their request ends. */
  async close() {
    this.stop();
    await Promise.all(this.endpoints.map((endpoint) => endpoint.close()));
  }

  async destroy(error: Error) {
    this.stop();
    await Promise.all([...this.endpoints, ...this.retired].map((endpoint) => endpoint.destroy(error)));
  }

  private get nextIndex() {
    return this.lastChosen + 1 < this.endpoints.length ? this.lastChosen + 1 : 0;
  }

  private stop() {
    clearInterval(this.timer);
    this.lastApplied = Number.POSITIVE_INFINITY;
  }

  private async resolve(number: number) {
    const { hostname, lookup = lookUpAll } = this.options;
    try {
      const found = await lookup(hostname);
      if (!Array.isArray(found) || !found.every((entry) => typeof entry?.address === 'string'))
        throw new TypeError('`lookup` must resolve to an array of `{ address, family }` objects');
      if (number < this.lastApplied) return;
      this.lookupError = undefined;
      this.lastApplied = number;
      this.replace(found);
    } catch (error) {
      if (number > this.lastApplied) this.lookupError = error;
      throw error;
    }
  }

  private replace(found: readonly LookupAddress[]) {
    const unique = [...new Map(found.map((address) => [address.address, address])).values()];
    const previous = new Map(this.endpoints.map((endpoint) => [endpoint.address, endpoint]));
    const used = this.withinLimit(unique, previous);
    const maxConnections = Math.max(1, Math.floor(this.options.connections / used.length));
    this.endpoints = used.map((address) =>
      this.keepOrOpen(previous.get(address.address), address, maxConnections),
    );
    if (previous.size > 0) this.checkNew(previous);
    const kept = new Set(this.endpoints);
    for (const endpoint of previous.values()) if (!kept.has(endpoint)) this.retire(endpoint);
  }

  // Each address needs a connection. If there are too many addresses, those in use are kept, unless they are ejected.
  private withinLimit(found: LookupAddress[], previous: ReadonlyMap<string, Endpoint>) {
    const { connections } = this.options;
    if (found.length <= connections) return found;
    const rank = ({ address }: LookupAddress) => {
      const endpoint = previous.get(address);
      if (endpoint === undefined) return 1;
      return endpoint.isEjected ? 2 : 0;
    };
    return found.toSorted((a, b) => rank(a) - rank(b)).slice(0, connections);
  }

  private checkNew(previous: ReadonlyMap<string, Endpoint>) {
    const { checkConnection } = this.options;
    if (checkConnection === undefined) return;
    for (const endpoint of this.endpoints) {
      if (!previous.has(endpoint.address)) endpoint.ejectUntilConnected(performance.now());
      if (endpoint.awaitsConnection) checkConnection(endpoint);
    }
  }

  private retire(endpoint: Endpoint) {
    this.retired.add(endpoint);
    const closed = () => this.retired.delete(endpoint);
    endpoint.close().then(closed, closed);
  }

  private keepOrOpen(previous: Endpoint | undefined, found: LookupAddress, maxConnections: number) {
    if (previous?.maxConnections === maxConnections) return previous;
    const open = (connections: number) => this.options.open(found, connections);
    return new Endpoint(found.address, maxConnections, open, previous);
  }
}

/** All addresses of a host name. The host name of a URL has brackets around an IPv6 address. */
export async function lookUpAll(hostname: string): Promise<LookupAddress[]> {
  return systemLookup(hostname.replace(/^\[|\]$/g, ''), { all: true });
}

function isBetter(candidate: Endpoint, best: Endpoint, avoid: readonly Endpoint[]) {
  const rank = rankOf(candidate, avoid);
  const bestRank = rankOf(best, avoid);
  if (rank !== bestRank) return rank < bestRank;
  if (candidate.inFlight !== best.inFlight) return candidate.inFlight < best.inFlight;
  // A replica that was just killed no longer responds, so the most recent response is the best sign of a healthy one.
  return candidate.inFlight > 0 && candidate.lastSuccessMs > best.lastSuccessMs;
}

function rankOf(endpoint: Endpoint, avoid: readonly Endpoint[]) {
  // Compared by address, because a lookup may have replaced the endpoints in `avoid`.
  const avoidedRank =
    avoid.length === 0 ? 0 : avoid.findLastIndex(({ address }) => address === endpoint.address) + 1;
  if (endpoint.isEjected) return avoidedRank + EJECTED_RANK;
  return avoidedRank + (endpoint.isBusy || endpoint.isThrottled ? THROTTLED_OR_BUSY_RANK : 0);
}
