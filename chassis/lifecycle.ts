import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Express } from 'express';
import { type Readiness, unloggedTraffic } from './admin';
import { HttpServer, ListenError, TIMEOUTS } from './http/server';
import { SettingsError } from './settings';
import type { Logger } from './telemetry/logger';
import type { Traffic } from './telemetry/traffic';

export interface Service {
  settings: { host: string; port: number; adminPort: number; drainMs: number; shutdownTimeoutMs: number };
  log: Logger;
  app: Express;
  adminApp: Express;
  traffic: Traffic;
  readiness: Readiness;
  /** Called when the service starts to stop, to release requests that it holds. */
  onStop?: () => void;
  /** Closed in this order when no request is in flight. */
  resources: readonly ({ close: () => Promise<void> } | undefined)[];
}

// On Ctrl-C, the terminal and a process manager may each send a signal. They count as one.
const SAME_SIGNAL_MS = 100;
const COLLECTION_CHECK_INTERVAL_MS = 400;
const STOP_COLLECTING_AFTER_MS = 60_000;

/**
 * Builds a service, and runs it until SIGTERM, SIGINT or an uncaught error. If its configuration is invalid or a
 * port is unavailable, the process exits with one message and code 1.
 */
export async function run(build: () => Service) {
  try {
    await new Lifecycle(build()).start();
  } catch (error) {
    if (!(error instanceof SettingsError || error instanceof ListenError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  }
}

class Lifecycle {
  private readonly server: HttpServer;
  private readonly admin: HttpServer;
  private stoppingSinceMs: number | undefined;

  constructor(private readonly service: Service) {
    this.server = new HttpServer(service.app, TIMEOUTS, service.traffic.reject());
    this.admin = new HttpServer(service.adminApp, TIMEOUTS, unloggedTraffic().reject());
  }

  async start() {
    const { settings, log, readiness } = this.service;
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => this.onSignal(signal));
    for (const event of ['uncaughtException', 'unhandledRejection'] as const)
      process.on(event, (err: unknown) => this.onUncaughtError(event, err));
    const adminPort = await this.admin.listen(settings.host, settings.adminPort);
    const port = await this.server.listen(settings.host, settings.port);
    readiness.isAcceptingTraffic = this.stoppingSinceMs === undefined;
    log.info({ host: settings.host, port, adminPort }, 'listening');
    void this.collectStartupGarbage();
  }

  // Loading the modules leaves about 13 MiB of garbage, which V8 keeps until its next major collection. Collecting it
  // blocks the process for about 25 ms, so this checks every 400 ms whether a request has arrived since the last check or
  // is in flight, and collects if not. Requests on the admin port do not count. After the first minute of the process,
  // the garbage is left to V8.
  private async collectStartupGarbage() {
    const { traffic } = this.service;
    while (this.stoppingSinceMs === undefined && performance.now() < STOP_COLLECTING_AFTER_MS) {
      const { requestCount } = traffic;
      await sleep(COLLECTION_CHECK_INTERVAL_MS, undefined, { ref: false });
      // If the event loop was blocked, requests may be waiting to be read. They are counted within its next two turns.
      await immediate();
      await immediate();
      const isIdle = traffic.size === 0 && traffic.requestCount === requestCount;
      if (isIdle && this.stoppingSinceMs === undefined) return collectGarbage();
    }
  }

  private onSignal(signal: string) {
    const nowMs = performance.now();
    if (this.stoppingSinceMs === undefined) void this.stop(signal, 0);
    else if (nowMs - this.stoppingSinceMs > SAME_SIGNAL_MS)
      void this.exitAfterTurn({ signal }, 'stopped by a second signal');
  }

  // Sends the responses to requests whose next hop responded in this turn of the event loop. The first wait may end
  // before the client of the next hop resolves them.
  private async exitAfterTurn(fields: object, message: string) {
    await immediate();
    await immediate();
    this.exit(1, fields, message);
  }

  private onUncaughtError(event: string, err: unknown) {
    this.service.log.fatal({ err }, event);
    if (this.stoppingSinceMs === undefined) void this.stop(event, 1);
    else this.exit(1, {}, 'stopped by a second error');
  }

  private async stop(reason: string, code: number) {
    const { settings, log, readiness, traffic } = this.service;
    this.stoppingSinceMs = performance.now();
    readiness.isAcceptingTraffic = false;
    for (const server of [this.server, this.admin]) server.drain();
    log.info({ reason, inFlight: traffic.size }, 'stopping');
    this.service.onStop?.();
    await sleep(settings.drainMs);
    const onTimeout = () =>
      void this.exitAfterTurn({ inFlight: traffic.size }, 'stopped after SHUTDOWN_TIMEOUT_MS');
    setTimeout(onTimeout, settings.shutdownTimeoutMs);
    await this.server.close();
    for (const resource of this.service.resources) await resource?.close();
    await this.admin.close();
    this.exit(code, {}, 'stopped');
  }

  // The logger's exit handler writes the lines that are still buffered.
  private exit(code: number, fields: object, message: string) {
    this.service.traffic.flushLogLines();
    this.service.log[code === 0 ? 'info' : 'error'](fields, message);
    process.exit(code);
  }
}

function collectGarbage() {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as NodeJS.GCFunction;
  setFlagsFromString('--no-expose-gc');
  gc({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}
