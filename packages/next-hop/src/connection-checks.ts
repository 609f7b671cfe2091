import type { Socket } from 'node:net';
import { type buildConnector, errors } from 'undici';
import type { Endpoint } from './endpoint';

const MAX_ADDRESSES = 3;
const MAX_WAIT_MS = 25;
const MIN_INTERVAL_MS = 4;

/** A connector of undici that returns its socket. A custom one may not. */
export type Connector = (...args: Parameters<buildConnector.connector>) => Socket | undefined;

interface Check {
  readonly startedMs: number;
  readonly isConnected: Promise<void>;
  hasEnded: boolean;
}

/**
 * Finds out whether connections can be established: to the next hop while its circuit is open because none could, and to
 * addresses that are added. A check opens a connection and closes it without a request. Requests share the checks, so
 * that an address that refuses connections gets at most one every 4 ms, and one that does not answer one every 25 ms.
 */
export class ConnectionChecks {
  private readonly latest = new WeakMap<Endpoint, Check>();
  private readonly connecting = new Set<Socket | undefined>();

  constructor(
    private readonly origin: URL,
    private readonly connect: Connector,
    /** Called when an endpoint has accepted a connection, even if no request waits for it any more. */
    private readonly onConnected: (endpoint: Endpoint, startedMs: number) => void,
  ) {}

  /**
   * Resolves when one of the first three of `endpoints` accepts a connection.
   * @throws {Error} when all have refused, or after 25 ms
   */
  async waitForConnection(endpoints: readonly Endpoint[]) {
    const { promise: timeout, reject } = Promise.withResolvers<never>();
    const giveUp = () => reject(new errors.ConnectTimeoutError(`no connection within ${MAX_WAIT_MS} ms`));
    const timer = setTimeout(giveUp, MAX_WAIT_MS);
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

  /** Cancels all checks. */
  close() {
    for (const socket of this.connecting) socket?.destroy(new errors.ClientDestroyedError());
  }

  private startOrJoin(endpoint: Endpoint): Promise<void> {
    const nowMs = performance.now();
    const latest = this.latest.get(endpoint);
    const intervalMs = latest?.hasEnded ? MIN_INTERVAL_MS : MAX_WAIT_MS;
    const isRecent = latest !== undefined && nowMs - latest.startedMs < intervalMs;
    return isRecent ? latest.isConnected : this.start(endpoint, nowMs);
  }

  private start(endpoint: Endpoint, startedMs: number) {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const check: Check = { startedMs, isConnected: promise, hasEnded: false };
    this.latest.set(endpoint, check);
    const { host, protocol, port } = this.origin;
    let connecting: Socket | undefined;
    connecting = this.connect({ hostname: endpoint.address, host, protocol, port }, (error, socket) => {
      check.hasEnded = true;
      this.connecting.delete(connecting);
      socket?.destroy();
      if (error !== null) return reject(error);
      this.onConnected(endpoint, startedMs);
      resolve();
    });
    if (!check.hasEnded) this.connecting.add(connecting);
    return promise;
  }
}
