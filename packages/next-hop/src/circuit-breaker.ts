export type CircuitState = 'closed' | 'half-open' | 'open';

/** `probe`: the one exchange that decides whether an open circuit closes. */
export type Admission = 'pass' | 'probe' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. Times are milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;

  constructor(private readonly onChange: (state: CircuitState) => void = () => {}) {}

  /** Whether an exchange may start now. Unless rejected, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'half-open' || nowMs < this.probeAtMs) return 'rejected';
    this.setState('half-open');
    return 'probe';
  }

  /** Records how an admitted exchange ended. Exchanges that started before the circuit opened no longer count. */
  record(admission: Admission, failed: boolean, nowMs: number) {
    if (admission === 'probe') this.endProbe(failed, nowMs);
    else if (this.state === 'closed') this.count(failed, nowMs);
  }

  /** Ends an admitted exchange without a result. If it was the probe, another exchange may be the next one. */
  cancel(admission: Admission) {
    if (admission === 'probe') this.setState('open');
  }

  private endProbe(failed: boolean, nowMs: number) {
    if (failed) this.open(nowMs);
    else this.setState('closed');
  }

  private count(failed: boolean, nowMs: number) {
    if (nowMs - this.lastRecordMs > STALE_AFTER_MS) this.reset();
    this.lastRecordMs = nowMs;
    const slot = this.recorded++ % WINDOW;
    this.failures += Number(failed) - (this.failed[slot] ?? 0);
    this.failed[slot] = Number(failed);
    const inWindow = Math.min(this.recorded, WINDOW);
    if (failed && inWindow >= MIN_RECORDED && this.failures > inWindow / 2) this.open(nowMs);
  }

  private open(nowMs: number) {
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.reset();
    this.setState('open');
  }

  private reset() {
    this.failed.fill(0);
    this.recorded = 0;
    this.failures = 0;
  }

  private setState(state: CircuitState) {
    this.state = state;
    this.onChange(state);
  }
}
