export type CircuitState = 'closed' | 'half-open' | 'open';

/** `trial`: the one exchange that decides whether an open circuit closes. */
export type Admission = 'pass' | 'trial' | 'refused';

const WINDOW = 32;
const LEAST = 16;
const STALE_MS = 10_000;
const TRIAL_AFTER_MS = 1000;

/**
 * Opens when most of the last exchanges failed, lets one trial through after a second, closes when
 * that succeeds. Times are milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private trialAtMs = 0;

  constructor(private readonly onChange: (state: CircuitState) => void = () => {}) {}

  /** Whether an exchange may start now. Unless refused, it must end in `record` or `abandon`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'half-open' || nowMs < this.trialAtMs) return 'refused';
    this.become('half-open');
    return 'trial';
  }

  /** How an admitted exchange ended. What began before the circuit opened no longer counts. */
  record(admission: Admission, failed: boolean, nowMs: number) {
    if (admission === 'trial') this.endTrial(failed, nowMs);
    else if (this.state === 'closed') this.count(failed, nowMs);
  }

  /** An admitted exchange ended without telling anything of the next hop: another one may try. */
  abandon(admission: Admission) {
    if (admission === 'trial') this.become('open');
  }

  private endTrial(failed: boolean, nowMs: number) {
    if (failed) this.open(nowMs);
    else this.become('closed');
  }

  private count(failed: boolean, nowMs: number) {
    if (nowMs - this.lastRecordMs > STALE_MS) this.reset();
    this.lastRecordMs = nowMs;
    const slot = this.recorded++ % WINDOW;
    this.failures += Number(failed) - (this.failed[slot] ?? 0);
    this.failed[slot] = Number(failed);
    const seen = Math.min(this.recorded, WINDOW);
    if (failed && seen >= LEAST && this.failures > seen / 2) this.open(nowMs);
  }

  private open(nowMs: number) {
    this.trialAtMs = nowMs + TRIAL_AFTER_MS;
    this.reset();
    this.become('open');
  }

  private reset() {
    this.failed.fill(0);
    this.recorded = 0;
    this.failures = 0;
  }

  private become(state: CircuitState) {
    this.state = state;
    this.onChange(state);
  }
}
