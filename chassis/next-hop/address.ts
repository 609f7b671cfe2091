import type { Dispatcher } from 'undici';
import { Pool } from './undici';

const DOUBTS_BEFORE_LEAVING = 3;
const FIRST_TRIAL_AFTER_MS = 1000;
const LONGEST_BEFORE_TRIAL_MS = 4000;

/**
 * One address of a next hop: its connections, and whether it answers. An address that takes no
 * connections is set aside at once, one that hangs or closes kept connections after three doubts in a
 * row; it comes back when a trial is answered.
 */
export class Address {
  /** Kept connections. */
  readonly connections: Dispatcher;
  /** New connections, each for one request, in place of kept ones that turned out to be closed. */
  readonly newConnections: Dispatcher;
  inFlight = 0;
  isSetAside = false;
  private doubts = 0;
  private untilTrialMs = FIRST_TRIAL_AFTER_MS;
  private trialAtMs = 0;

  constructor(
    readonly ip: string,
    /** How many connections it may have at most. */
    readonly share: number,
    open: (connections: number) => Dispatcher,
    before?: Address,
  ) {
    this.connections = open(share);
    this.newConnections = open(Math.ceil(share / 8));
    if (before) this.takeOver(before);
  }

  get openConnections() {
    return openIn(this.connections) + openIn(this.newConnections);
  }

  /** Whether a request would have to wait for one of its connections. */
  get isBusy() {
    return this.inFlight >= this.share;
  }

  isDueForTrial(nowMs: number) {
    return this.isSetAside && nowMs >= this.trialAtMs;
  }

  /** Nobody else is to try it until this trial has told. */
  beginTrial() {
    this.trialAtMs = Number.POSITIVE_INFINITY;
  }

  answered() {
    this.doubts = 0;
    this.isSetAside = false;
    this.untilTrialMs = FIRST_TRIAL_AFTER_MS;
  }

  /** It is late, beaten by a later request, or closed a kept connection, be it for idleness: that alone does not tell yet. */
  doubt(nowMs: number) {
    if (++this.doubts >= DOUBTS_BEFORE_LEAVING) this.setAside(nowMs);
  }

  setAside(nowMs: number) {
    // Requests that were under way together fail together: that is one failure, not many.
    if (this.isSetAside && this.trialAtMs !== Number.POSITIVE_INFINITY) return;
    this.isSetAside = true;
    this.trialAtMs = nowMs + this.untilTrialMs;
    this.untilTrialMs = Math.min(this.untilTrialMs * 2, LONGEST_BEFORE_TRIAL_MS);
  }

  /** Closes idle connections now, others when their request ends. */
  async close() {
    // They are one where a test or a proxy brings its own.
    await Promise.all([...new Set([this.connections, this.newConnections])].map((opened) => opened.close()));
  }

  private takeOver(before: Address) {
    this.isSetAside = before.isSetAside;
    this.untilTrialMs = before.untilTrialMs;
    this.trialAtMs = Math.min(before.trialAtMs, performance.now() + before.untilTrialMs);
  }
}

// A dispatcher that a test or a proxy brings keeps no such count.
function openIn(connections: Dispatcher) {
  return connections instanceof Pool ? connections.stats.connected : 0;
}
