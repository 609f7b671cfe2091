import type { Dispatcher } from 'undici';

const LATE_ANSWERS_BEFORE_LEAVING = 3;
const FIRST_TRIAL_AFTER_MS = 1000;
const LONGEST_BEFORE_TRIAL_MS = 4000;

/**
 * One address of a next hop: its connections, and whether it answers. An address whose connections
 * fail is set aside at once, one that hangs after three late answers in a row; it comes back when a
 * trial is answered.
 */
export class Address {
  inFlight = 0;
  isSetAside = false;
  private lateAnswers = 0;
  private untilTrialMs = FIRST_TRIAL_AFTER_MS;
  private trialAtMs = 0;

  constructor(
    readonly ip: string,
    /** How many connections it may have at most. */
    readonly share: number,
    readonly connections: Dispatcher,
    before?: Address,
  ) {
    if (before) this.takeOver(before);
  }

  isDueForTrial(nowMs: number) {
    return this.isSetAside && nowMs >= this.trialAtMs;
  }

  /** Nobody else is to try it until this trial has told. */
  beginTrial() {
    this.trialAtMs = Number.POSITIVE_INFINITY;
  }

  answered() {
    this.lateAnswers = 0;
    this.isSetAside = false;
    this.untilTrialMs = FIRST_TRIAL_AFTER_MS;
  }

  answersLate(nowMs: number) {
    if (++this.lateAnswers >= LATE_ANSWERS_BEFORE_LEAVING) this.setAside(nowMs);
  }

  setAside(nowMs: number) {
    // Requests that were under way together fail together: that is one failure, not many.
    if (this.isSetAside && this.trialAtMs !== Number.POSITIVE_INFINITY) return;
    this.isSetAside = true;
    this.trialAtMs = nowMs + this.untilTrialMs;
    this.untilTrialMs = Math.min(this.untilTrialMs * 2, LONGEST_BEFORE_TRIAL_MS);
  }

  /** The name no longer has this address: what is in flight is finished, idle connections close. */
  leave() {
    this.connections.close().catch(() => this.connections.destroy());
  }

  private takeOver(before: Address) {
    this.isSetAside = before.isSetAside;
    this.untilTrialMs = before.untilTrialMs;
    this.trialAtMs = Math.min(before.trialAtMs, performance.now() + before.untilTrialMs);
  }
}
