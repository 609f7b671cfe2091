import { errors } from 'undici';
import type { Endpoint } from './endpoint';

const MAX_ADDRESSES = 3;
const MAX_WAIT_MS = 25;
/** Between two checks of an address that refuses connections. */
const MIN_INTERVAL_MS = 4;
const SHORT_TIMEOUT_MS = 100;

/** Opens a connection to an address, and calls `callback` with an error or, after it has closed the connection, null. */
export type TryToConnect = (
  address: string,
  timeoutMs: number,
  callback: (error: Error | null) => void,
) => void;

interface Check {
  readonly startedMs: number;
  readonly connected: Promise<void>;
  hasEnded: boolean;
}

/**
 * Finds out whether connections can be established: to the next hop while its circuit is open because none could, and to
 * addresses that were added. A check opens a connection and closes it without a request. Requests share checks: at most
 * one starts every 4 ms for an address that refuses connections, and every 25 ms for one that does not respond.
 */
export class ConnectionChecks {
  private readonly latest = new WeakMap<Endpoint, Check>();
  /** Endpoints with a check that may take as long as any attempt to connect. Others are shorter, so that few hang. */
  private readonly longChecked = new WeakSet<Endpoint>();

  constructor(
    private readonly tryToConnect: TryToConnect,
    private readonly connectTimeoutMs: number,
    /** Called when an address has accepted a connection, even if no request waits for it any more. */
    private readonly onConnected: (address: string, startedMs: number) => void,
  ) {}

  /**
   * Resolves when one of the first three of `endpoints` accepts a connection.
   * @throws {Error} if all checks fail, or after 25 ms, or after `timeoutMs` if that is shorter
   */
  async waitForConnection(endpoints: readonly Endpoint[], timeoutMs: number) {
    const { promise: timeout, reject } = Promise.withResolvers<never>();
    const waitMs = Math.min(MAX_WAIT_MS, timeoutMs);
    const giveUp = () => reject(new errors.ConnectTimeoutError(`no connection within ${waitMs} ms`));
    // If this process was busy, a connection may have been established. Its event is handled before `giveUp` runs.
    const timer = setTimeout(() => setImmediate(giveUp), waitMs);
    const checks = endpoints.slice(0, MAX_ADDRESSES).map((endpoint) => this.startOrJoin(endpoint));
    try {
      await Promise.race([Promise.any(checks), timeout]);
    } catch (error) {
      throw error instanceof AggregateError ? error.errors[0] : error;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Checks one endpoint. */
  check(endpoint: Endpoint) {
    this.startOrJoin(endpoint).catch(() => {});
  }

  private startOrJoin(endpoint: Endpoint): Promise<void> {
    const nowMs = performance.now();
    const latest = this.latest.get(endpoint);
    const intervalMs = latest?.hasEnded ? MIN_INTERVAL_MS : MAX_WAIT_MS;
    const canJoin = latest !== undefined && nowMs - latest.startedMs < intervalMs;
    return canJoin ? latest.connected : this.start(endpoint, nowMs);
  }

  private start(endpoint: Endpoint, startedMs: number) {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const check: Check = { startedMs, connected: promise, hasEnded: false };
    this.latest.set(endpoint, check);
    const isLong = !this.longChecked.has(endpoint);
    if (isLong) this.longChecked.add(endpoint);
    const timeoutMs = isLong ? this.connectTimeoutMs : Math.min(SHORT_TIMEOUT_MS, this.connectTimeoutMs);
    this.tryToConnect(endpoint.address, timeoutMs, (error) => {
      check.hasEnded = true;
      if (isLong) this.longChecked.delete(endpoint);
      if (error !== null) return reject(error);
      // The next request needs a check of its own.
      this.latest.delete(endpoint);
      this.onConnected(endpoint.address, startedMs);
      resolve();
    });
    return promise;
  }
}
