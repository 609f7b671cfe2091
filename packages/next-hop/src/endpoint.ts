import { type Dispatcher, Pool } from 'undici';

const WARNINGS_BEFORE_PROBE = 2;
const FAILURES_BEFORE_EJECTION = 5;
const OUTCOMES_MASK = 2 ** 20 - 1;
const FIRST_EJECTION_MS = 1000;
const MAX_EJECTION_MS = 30_000;
const THROTTLE_INTERVALS_PER_PROBE = 5;

/**
 * One address of a next hop: its connections, and whether it is ejected. It is ejected immediately when a
 * connection attempt fails, when a probe fails after two warnings in a row (a slow response, a hedge that is faster,
 * or a closed idle connection), and after five other failures or responses with 502, 503 or 504 in a row. While it is
 * probed because of warnings, it gets few requests. A successful probe or request readmits it. Each ejection and each
 * failed probe doubles the delay of the next probe, until a request other than a probe succeeds.
 */
export class Endpoint {
  /** Keep-alive connections. */
  readonly connections: Dispatcher;
  /** A new connection for each request, for retries after a closed keep-alive connection. */
  readonly newConnections: Dispatcher;
  inFlight = 0;
  /** When its last response other than 502, 503 and 504 was complete, in milliseconds. Probes do not count. */
  lastSuccessMs = 0;
  isEjected = false;
  /** Whether it is ejected because it is new, or slow to connect, and may not accept connections. */
  awaitsConnection = false;
  private warnings = 0;
  private consecutiveFailures = 0;
  // The last 20 outcomes, one bit each; 1 is a failure.
  private outcomes = 0;
  private ejectionMs = FIRST_EJECTION_MS;
  private probeAtMs = 0;
  private throttleIntervalMs = 0;
  private throttledUntilMs = 0;

  constructor(
    readonly address: string,
    readonly maxConnections: number,
    open: (maxConnections: number) => Dispatcher,
    previous?: Endpoint,
  ) {
    this.connections = open(maxConnections);
    this.newConnections = open(Math.ceil(maxConnections / 8));
    if (previous) this.inherit(previous);
  }

  /** The statistics of both of its pools, as undici counts them. */
  get stats(): Pool.PoolStats {
    const stats = { connected: 0, free: 0, pending: 0, queued: 0, running: 0, size: 0 };
    for (const pool of [this.connections, this.newConnections]) {
      // A dispatcher returned by `factory` may have no statistics.
      if (!(pool instanceof Pool)) continue;
      for (const name of Object.keys(stats) as (keyof typeof stats)[]) stats[name] += pool.stats[name];
    }
    return stats;
  }

  /** Whether a request would have to wait for a connection. */
  get isBusy() {
    return this.inFlight >= this.maxConnections;
  }

  /** Whether a probe must decide if this endpoint is readmitted or, if it is only suspect, ejected. */
  isDueForProbe(nowMs: number) {
    return nowMs >= this.probeAtMs && (this.isEjected || this.warnings >= WARNINGS_BEFORE_PROBE);
  }

  /** Whether other endpoints are preferred because its probe, or a request during that probe, started shortly before. */
  get isThrottled() {
    return this.isBeingProbed && performance.now() < this.throttledUntilMs;
  }

  private get isBeingProbed() {
    return this.probeAtMs === Number.POSITIVE_INFINITY;
  }

  /**
   * Prevents other probes until this one ends, and throttles the endpoint: other endpoints are preferred for a fifth of
   * `timeoutMs`, and again after each request that is sent to it. The response to such a request can show that only the
   * probe is slow.
   */
  startProbe(timeoutMs: number) {
    this.probeAtMs = Number.POSITIVE_INFINITY;
    this.throttleIntervalMs = timeoutMs / THROTTLE_INTERVALS_PER_PROBE;
    this.throttle();
  }

  /** Called when a request is sent to it. */
  requestStarted() {
    this.inFlight++;
    if (this.isBeingProbed) this.throttle();
  }

  private throttle() {
    this.throttledUntilMs = performance.now() + this.throttleIntervalMs;
  }

  /** Whether five of the last 20 requests failed. */
  get isUnreliable() {
    let failures = 0;
    for (let rest = this.outcomes; rest !== 0; rest &= rest - 1) failures++;
    return failures >= FAILURES_BEFORE_EJECTION;
  }

  /** Called after a complete response other than 502, 503 and 504. */
  succeeded(nowMs: number) {
    this.lastSuccessMs = nowMs;
    this.probeSucceeded();
    this.ejectionMs = FIRST_EJECTION_MS;
  }

  /** Readmits it, but keeps the doubled delay of its next probe, which only another request resets. */
  probeSucceeded() {
    this.readmit();
    this.warnings = 0;
    this.consecutiveFailures = 0;
    this.outcomes = (this.outcomes << 1) & OUTCOMES_MASK;
  }

  /** Ejects it until a connection check or a probe succeeds. */
  ejectUntilConnected(nowMs: number) {
    this.awaitsConnection = true;
    this.isEjected = true;
    this.probeAtMs = nowMs + FIRST_EJECTION_MS;
  }

  readmit() {
    this.awaitsConnection = false;
    this.isEjected = false;
    this.probeAtMs = 0;
  }

  /** Called after a slow response or a closed idle connection, neither of which proves a failure. */
  suspect() {
    this.warnings++;
  }

  probeFailed(nowMs: number) {
    const wasEjectedMeanwhile = this.isEjected && !this.isBeingProbed;
    if (wasEjectedMeanwhile) return;
    // If other requests had a response in the meantime, only the probe was slow.
    if (this.isEjected || this.warnings > 0) this.startEjection(nowMs);
    else this.probeAtMs = 0;
  }

  /** Called after a failure or a response with 502, 503 or 504. Five in a row eject the endpoint. */
  failed(nowMs: number) {
    this.countFailure();
    if (++this.consecutiveFailures >= FAILURES_BEFORE_EJECTION) this.eject(nowMs);
  }

  countFailure() {
    this.outcomes = ((this.outcomes << 1) | 1) & OUTCOMES_MASK;
  }

  eject(nowMs: number) {
    // Concurrent requests fail together, which counts as one failure.
    if (!this.isEjected) this.startEjection(nowMs);
  }

  private startEjection(nowMs: number) {
    this.isEjected = true;
    this.outcomes = 0;
    this.probeAtMs = nowMs + this.ejectionMs;
    this.ejectionMs = Math.min(this.ejectionMs * 2, MAX_EJECTION_MS);
  }

  /** Closes idle connections now, and others when their request ends. */
  async close() {
    await Promise.all(this.dispatchers().map((dispatcher) => dispatcher.close()));
  }

  async destroy(error: Error) {
    await Promise.all(this.dispatchers().map((dispatcher) => dispatcher.destroy(error)));
  }

  // A `factory` may return the same dispatcher twice.
  private dispatchers() {
    return [...new Set([this.connections, this.newConnections])];
  }

  private inherit(previous: Endpoint) {
    this.isEjected = previous.isEjected;
    this.awaitsConnection = previous.awaitsConnection;
    this.lastSuccessMs = previous.lastSuccessMs;
    this.ejectionMs = previous.ejectionMs;
    this.probeAtMs = Math.min(previous.probeAtMs, performance.now() + previous.ejectionMs);
  }
}
