export type CircuitState = 'closed' | 'half-open' | 'open';

/**
 * `probe`: its result decides whether the circuit closes. `check`: it may start only if a connection can be established.
 */
export type Admission = 'pass' | 'probe' | 'check' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;
// A single refused connection may be that of one replica that restarts.
const MIN_UNCONNECTED_FOR_CHECKS = 8;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. If it opened because no connection could be established, there is no probe: all exchanges are let through
 * as soon as there is a connection, and the first result decides. Times are milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;
  /** Whether it opened because no connection could be established. */
  private isUnconnected = false;
  /** The number of exchanges in a row that failed because no connection could be established. */
  private unconnected = 0;
  private openedMs = Number.NEGATIVE_INFINITY;

  /**
   * @param canCheck whether connections can be checked without a request
   */
  constructor(
    private readonly onChange: (state: CircuitState) => void = () => {},
    private readonly canCheck = true,
  ) {}

  /** Whether an exchange may start now. With `pass` or `probe`, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'half-open') return this.isUnconnected ? 'probe' : 'rejected';
    if (this.isUnconnected) return 'check';
    if (nowMs < this.probeAtMs) return 'rejected';
    this.setState('half-open');
    return 'probe';
  }

  /** Called when a connection was established by a check. One that started before the circuit opened does not count. */
  connected(startedMs: number) {
    if (this.state === 'open' && startedMs >= this.openedMs) this.setState('half-open');
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
    if (this.isUnconnected || startedMs < this.openedMs) return;
    if (admission === 'probe' && this.state === 'half-open') this.setState('open');
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

  private open(nowMs: number, isUnconnected: boolean) {
    this.openedMs = nowMs;
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.isUnconnected = isUnconnected && this.canCheck;
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
