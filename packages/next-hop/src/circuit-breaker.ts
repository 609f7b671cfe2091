export type CircuitState = 'closed' | 'half-open' | 'open';

/** `probe`: the one exchange that decides whether an open circuit closes. */
export type Admission = 'pass' | 'probe' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;
const CHECK_INTERVAL_MS = 25;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. While no connection can be established, checks in the background may close it earlier. Times are
 * milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;
  /** When a check may start. Infinite if the exchange that opened the circuit had a connection. */
  private checkAtMs = Number.POSITIVE_INFINITY;

  constructor(private readonly onChange: (state: CircuitState) => void = () => {}) {}

  /** Whether an exchange may start now. Unless rejected, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'half-open' || nowMs < this.probeAtMs) return 'rejected';
    this.setState('half-open');
    return 'probe';
  }

  /**
   * Whether to check now, in the background, if the next hop accepts connections again: every 25 ms while none can be
   * established. A next hop that is down cannot be overloaded. Several checks run at once, because a connection attempt
   * that was started too early can hang.
   */
  startsCheck(nowMs: number): boolean {
    if (this.state === 'closed' || nowMs < this.checkAtMs) return false;
    this.checkAtMs = nowMs + CHECK_INTERVAL_MS;
    return true;
  }

  /** Called when a check succeeds. */
  close() {
    this.setState('closed');
  }

  /**
   * Records how an admitted exchange ended. Exchanges that started before the circuit opened no longer count.
   * @param hadConnection false if the exchange failed because no connection could be established
   */
  record(admission: Admission, failed: boolean, nowMs: number, hadConnection = true) {
    if (this.state === 'closed') this.count(failed, nowMs, hadConnection);
    else if (admission === 'probe' && failed) this.open(nowMs, hadConnection);
    else if (admission === 'probe') this.setState('closed');
  }

  /** Ends an admitted exchange without a result. If it was the probe, the next exchange becomes the probe. */
  cancel(admission: Admission) {
    if (admission === 'probe' && this.state === 'half-open') this.setState('open');
  }

  private count(failed: boolean, nowMs: number, hadConnection: boolean) {
    if (nowMs - this.lastRecordMs > STALE_AFTER_MS) this.reset();
    this.lastRecordMs = nowMs;
    const slot = this.recorded++ % WINDOW;
    this.failures += Number(failed) - (this.failed[slot] ?? 0);
    this.failed[slot] = Number(failed);
    const inWindow = Math.min(this.recorded, WINDOW);
    if (failed && inWindow >= MIN_RECORDED && this.failures > inWindow / 2) this.open(nowMs, hadConnection);
  }

  private open(nowMs: number, hadConnection: boolean) {
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.checkAtMs = hadConnection ? Number.POSITIVE_INFINITY : nowMs;
    this.reset();
    this.setState('open');
  }

  private reset() {
    this.failed.fill(0);
    this.recorded = 0;
    this.failures = 0;
  }

  private setState(state: CircuitState) {
    if (this.state === state) return;
    this.state = state;
    this.onChange(state);
  }
}
