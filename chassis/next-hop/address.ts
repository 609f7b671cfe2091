import type { Dispatcher } from 'undici';
import { Pool } from './undici';

const SUSPICIONS_BEFORE_EJECTION = 3;
const FAILURES_BEFORE_EJECTION = 5;
const FIRST_EJECTION_MS = 1000;
const MAX_EJECTION_MS = 30_000;

/**
 * One address of a next hop: its connections, and whether it is ejected. An address is ejected at once when it
 * accepts no connections, after three suspicions in a row (a slow response, a closed idle connection), and after
 * five responses in a row with 502, 503 or 504. It comes back through a probe; each failed probe doubles the
 * time to the next one.
 */
export class Address {
  /** Kept connections. */
  readonly connections: Dispatcher;
  /** New connections, each for one request, in place of kept ones that turned out to be closed. */
  readonly newConnections: Dispatcher;
  inFlight = 0;
  isEjected = false;
  private suspicions = 0;
  private consecutiveFailures = 0;
  private ejectionMs = FIRST_EJECTION_MS;
  private probeAtMs = 0;

  constructor(
    readonly ip: string,
    /** How many connections it may have at most. */
    readonly share: number,
    open: (connections: number) => Dispatcher,
    previous?: Address,
  ) {
    this.connections = open(share);
    this.newConnections = open(Math.ceil(share / 8));
    if (previous) this.inherit(previous);
  }

  get openConnections() {
    return openIn(this.connections) + openIn(this.newConnections);
  }

  /** Whether a request would have to wait for one of its connections. */
  get isBusy() {
    return this.inFlight >= this.share;
  }

  isDueForProbe(nowMs: number) {
    return this.isEjected && nowMs >= this.probeAtMs;
  }

  /** No other probe starts before this one has ended. */
  startProbe() {
    this.probeAtMs = Number.POSITIVE_INFINITY;
  }

  /** It sent a response other than 502, 503 and 504. */
  succeeded() {
    this.suspicions = 0;
    this.consecutiveFailures = 0;
    this.isEjected = false;
    this.ejectionMs = FIRST_EJECTION_MS;
  }

  /** A slow response or a closed idle connection is only a suspicion; three in a row eject the address. */
  suspect(nowMs: number) {
    if (++this.suspicions >= SUSPICIONS_BEFORE_EJECTION) this.eject(nowMs);
  }

  /** It responded with 502, 503 or 504; five in a row eject the address. */
  failed(nowMs: number) {
    if (++this.consecutiveFailures >= FAILURES_BEFORE_EJECTION) this.eject(nowMs);
  }

  eject(nowMs: number) {
    // Requests in flight together fail together: that is one failure, not many.
    if (this.isEjected && this.probeAtMs !== Number.POSITIVE_INFINITY) return;
    this.isEjected = true;
    this.probeAtMs = nowMs + this.ejectionMs;
    this.ejectionMs = Math.min(this.ejectionMs * 2, MAX_EJECTION_MS);
  }

  /** Closes idle connections now, others when their request ends. */
  async close() {
    // They are one where a test or a proxy brings its own.
    await Promise.all([...new Set([this.connections, this.newConnections])].map((opened) => opened.close()));
  }

  private inherit(previous: Address) {
    this.isEjected = previous.isEjected;
    this.ejectionMs = previous.ejectionMs;
    this.probeAtMs = Math.min(previous.probeAtMs, performance.now() + previous.ejectionMs);
  }
}

// A dispatcher that a test or a proxy brings keeps no such count.
function openIn(connections: Dispatcher) {
  return connections instanceof Pool ? connections.stats.connected : 0;
}
