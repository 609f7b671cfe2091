export type CircuitState = 'closed' | 'half-open' | 'open';

/** `probe`: the one exchange that decides whether an open circuit closes. */
export type Admission = 'pass' | 'probe' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;
const CHECK_INTERVAL_MS = 25;
// A single refused connection may be that of one replica that restarts.
const MIN_UNCONNECTED_FOR_CHECKS = 8;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. While no connection can be established, background checks may close it earlier. Times are
 * milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;
  /** When a background check may start; infinity unless the last exchanges failed to connect. */
  private checkAtMs = Number.POSITIVE_INFINITY;
  /** The number of exchanges in a row that failed because no connection could be established. */
  private unconnected = 0;
  private openedMs = Number.NEGATIVE_INFINITY;

  constructor(private readonly onChange: (state: CircuitState) => void = () => {}) {}

  /** Whether an exchange may start now. Unless rejected, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'half-open' || nowMs < this.probeAtMs) return 'rejected';
    this.setState('half-open');
    return 'probe';
  }

  /**
   * Whether a background check may start now: at most one every 25 ms, and only while no connection can be established,
   * so that checks cannot overload the next hop. Several may run at once, because a connection attempt that started
   * before the next hop was back can hang.
   */
  admitCheck(nowMs: number): boolean {
    if (this.state === 'closed' || nowMs < this.checkAtMs) return false;
    this.checkAtMs = nowMs + CHECK_INTERVAL_MS;
    return true;
  }

  /** Called when a check gets a response. A check that started before the circuit last opened does not count. */
  checkSucceeded(startedMs: number) {
    if (startedMs >= this.openedMs) this.setState('closed');
  }

  /**
   * Records how an admitted exchange ended. Exchanges that started before the circuit opened no longer count.
   * @param hadConnection false if the exchange failed because no connection could be established
   * @param startedMs when it was admitted
   */
  record(admission: Admission, failed: boolean, nowMs: number, hadConnection = true, startedMs = nowMs) {
    if (startedMs < this.openedMs) return;
    this.unconnected = hadConnection ? 0 : this.unconnected + 1;
    if (this.state === 'closed') this.count(failed, nowMs);
    else if (admission === 'probe' && failed) this.open(nowMs, !hadConnection);
    else if (admission === 'probe') this.setState('closed');
  }

  /** Ends an admitted exchange without a result. If it was the probe, the next exchange becomes the probe. */
  cancel(admission: Admission, startedMs: number) {
    if (admission === 'probe' && this.state === 'half-open' && startedMs >= this.openedMs)
      this.setState('open');
  }

  private count(failed: boolean, nowMs: number) {
    if (nowMs - this.lastRecordMs > STALE_AFTER_MS) this.reset();
    this.lastRecordMs = nowMs;
    const slot = this.recorded++ % WINDOW;
    this.failures += Number(failed) - (this.failed[slot] ?? 0);
    this.failed[slot] = Number(failed);
    const inWindow = Math.min(this.recorded, WINDOW);
    if (failed && inWindow >= MIN_RECORDED && this.failures > inWindow / 2)
      this.open(nowMs, this.unconnected >= MIN_UNCONNECTED_FOR_CHECKS);
  }

  private open(nowMs: number, startsChecks: boolean) {
    this.openedMs = nowMs;
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.checkAtMs = startsChecks ? nowMs : Number.POSITIVE_INFINITY;
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
