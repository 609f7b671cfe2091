export type CircuitState = 'closed' | 'half-open' | 'open';

/** `probe`: the one exchange that decides whether an open circuit closes. */
export type Admission = 'pass' | 'probe' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;
const PROBE_AFTER_NO_CONNECTION_MS = 25;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. As long as no connection can be established, one is let through every 25 ms, even if earlier ones have not
 * ended: a next hop that is down cannot be overloaded, and an attempt to connect to it may hang when it comes back.
 * Times are milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;
  /** Whether the exchange that opened the circuit had a connection. */
  private hadConnection = true;

  constructor(private readonly onChange: (state: CircuitState) => void = () => {}) {}

  /** Whether an exchange may start now. Unless rejected, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (nowMs < this.probeAtMs) return 'rejected';
    this.probeAtMs = this.hadConnection ? Number.POSITIVE_INFINITY : nowMs + PROBE_AFTER_NO_CONNECTION_MS;
    this.setState('half-open');
    return 'probe';
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

  /** Lets a probe through now, even if an earlier one has not ended. */
  probeNow() {
    if (this.state === 'closed') return;
    this.probeAtMs = 0;
    this.setState('open');
  }

  /** Ends an admitted exchange without a result. If it was the probe, the next exchange becomes the probe. */
  cancel(admission: Admission) {
    if (admission !== 'probe' || this.state !== 'half-open') return;
    this.probeAtMs = 0;
    this.setState('open');
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
    this.hadConnection = hadConnection;
    const probeAtMs = nowMs + (hadConnection ? PROBE_AFTER_MS : PROBE_AFTER_NO_CONNECTION_MS);
    // One of several probes that failed to connect must not delay the next one.
    const isLate = !hadConnection && this.state !== 'closed';
    this.probeAtMs = isLate ? Math.min(this.probeAtMs, probeAtMs) : probeAtMs;
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
