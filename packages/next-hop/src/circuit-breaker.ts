export type CircuitState = 'closed' | 'half-open' | 'open';

/**
 * `probe`: the result decides whether the circuit closes. `check`: the exchange must wait for a connection check and then
 * ask again.
 */
export type Admission = 'pass' | 'probe' | 'check' | 'rejected';

const WINDOW = 32;
const MIN_RECORDED = 16;
const STALE_AFTER_MS = 10_000;
const PROBE_AFTER_MS = 1000;
/** How long the number of probes is unlimited after a successful connection check. */
const UNLIMITED_PROBES_MS = 1000;
// A few refused connections may come from one replica that is restarting.
const MIN_CONNECT_FAILURES_FOR_CHECKS = 8;

/**
 * Opens when most of the recent exchanges failed, lets one probe through after a second, and closes when that
 * succeeds. While that probe is in flight, one more is let through each second. If it opened because no connection
 * could be established, it instead waits for one, and then lets all exchanges through as probes for a second; the first
 * result decides. Times are milliseconds of one monotonic clock.
 */
export class CircuitBreaker {
  state: CircuitState = 'closed';
  private readonly failed = new Uint8Array(WINDOW);
  private recorded = 0;
  private failures = 0;
  private lastRecordMs = 0;
  private probeAtMs = 0;
  /** Whether it opened because no connection could be established. */
  private waitsForConnection = false;
  /** The number of exchanges in a row that failed because no connection could be established. */
  private connectFailures = 0;
  private openedMs = Number.NEGATIVE_INFINITY;
  /** The probes that have not ended. */
  private probes = 0;
  private connectedMs = 0;

  /**
   * @param canCheckConnections whether connections can be checked without a request
   */
  constructor(
    private readonly onChange: (state: CircuitState) => void = () => {},
    private readonly canCheckConnections = false,
  ) {}

  /** Whether an exchange may start now. Unless it is rejected or has to wait, it must end in `record` or `cancel`. */
  admit(nowMs: number): Admission {
    if (this.state === 'closed') return 'pass';
    if (this.state === 'open') {
      if (this.waitsForConnection) return 'check';
      if (nowMs < this.probeAtMs) return 'rejected';
      this.setState('half-open');
    }
    // A server that has just started may respond slowly at first. Rejecting requests in the meantime would only add failures.
    const isLimited = !this.waitsForConnection || nowMs - this.connectedMs >= UNLIMITED_PROBES_MS;
    if (this.waitsForConnection && isLimited && this.probes === 0) {
      // No request followed the connection check, so its result is out of date.
      this.setState('open');
      return 'check';
    }
    // A probe may take long, for example because its response is a stream, so another one follows after a second.
    if (isLimited && this.probes > 0 && nowMs < this.probeAtMs) return 'rejected';
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.probes++;
    return 'probe';
  }

  /** Called when a connection check succeeds. One that started before the circuit opened does not count. */
  connected(startedMs: number, nowMs = startedMs) {
    if (this.state !== 'open' || !this.waitsForConnection || startedMs < this.openedMs) return;
    this.connectedMs = nowMs;
    this.setState('half-open');
  }

  /**
   * Records how an admitted exchange ended. Exchanges that started before the circuit opened no longer count.
   * @param hadConnection false if the exchange failed because no connection could be established
   * @param admittedMs when it was admitted
   */
  record(admission: Admission, failed: boolean, nowMs: number, hadConnection = true, admittedMs = nowMs) {
    if (admittedMs < this.openedMs || admission === 'check' || admission === 'rejected') return;
    this.connectFailures = hadConnection ? 0 : this.connectFailures + 1;
    if (this.state === 'closed') this.count(failed, nowMs);
    else if (admission === 'probe' && failed) this.open(nowMs, !hadConnection);
    else if (admission === 'probe') this.setState('closed');
  }

  /** Ends an admitted exchange without a result. If it was the only probe, the next exchange may become one. */
  cancel(admission: Admission, admittedMs: number) {
    if (admission !== 'probe' || admittedMs < this.openedMs) return;
    this.probes--;
    if (this.probes > 0 || this.state !== 'half-open') return;
    this.probeAtMs = admittedMs;
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
      this.open(nowMs, this.connectFailures >= MIN_CONNECT_FAILURES_FOR_CHECKS);
  }

  private open(nowMs: number, isUnconnected: boolean) {
    this.openedMs = nowMs;
    this.probeAtMs = nowMs + PROBE_AFTER_MS;
    this.waitsForConnection = isUnconnected && this.canCheckConnections;
    this.probes = 0;
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
