import { setTimeout as sleep } from 'node:timers/promises';
import type { Express } from 'express';
import { type Readiness, unloggedTraffic } from './admin';
import type { Logger } from './logger';
import { HttpServer, ListenError, TIMEOUTS } from './server';
import { SettingsError } from './settings';
import type { Traffic } from './traffic';

export interface Service {
  settings: { host: string; port: number; adminPort: number; drainMs: number; shutdownTimeoutMs: number };
  log: Logger;
  app: Express;
  adminApp: Express;
  traffic: Traffic;
  readiness: Readiness;
  /** Called when it begins to stop: ends what holds requests up. */
  stopping?: () => void;
  /** What the app uses, to be closed in this order once nothing is in flight. */
  closes: readonly ({ close: () => Promise<void> } | undefined)[];
}

// A terminal and a process manager both pass Ctrl-C on: that is one signal, not two.
const SAME_SIGNAL_MS = 100;

/**
 * Builds a service, and runs it until SIGTERM, SIGINT or an error that nobody caught. Wrong settings
 * or a port that can't be had end the process with one message and code 1.
 */
export async function run(build: () => Service) {
  try {
    await new Life(build()).begin();
  } catch (error) {
    if (!(error instanceof SettingsError || error instanceof ListenError)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  }
}

class Life {
  private readonly server: HttpServer;
  private readonly admin: HttpServer;
  private endingSinceMs: number | undefined;

  constructor(private readonly service: Service) {
    this.server = new HttpServer(service.app, TIMEOUTS, service.traffic.reject());
    this.admin = new HttpServer(service.adminApp, TIMEOUTS, unloggedTraffic().reject());
  }

  async begin() {
    const { settings, log, readiness } = this.service;
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => this.end(signal));
    for (const event of ['uncaughtException', 'unhandledRejection'] as const)
      process.on(event, (err: unknown) => this.crash(event, err));
    const adminPort = await this.admin.listen(settings.host, settings.adminPort);
    const port = await this.server.listen(settings.host, settings.port);
    readiness.isReady = this.endingSinceMs === undefined;
    log.info({ host: settings.host, port, adminPort }, 'listening');
  }

  private end(signal: string) {
    const nowMs = performance.now();
    if (this.endingSinceMs === undefined) void this.stop(signal, 0);
    else if (nowMs - this.endingSinceMs > SAME_SIGNAL_MS)
      this.exit(1, { signal }, 'stopped by a second signal');
  }

  private crash(event: string, err: unknown) {
    this.service.log.fatal({ err }, event);
    if (this.endingSinceMs === undefined) void this.stop(event, 1);
    else this.exit(1, {}, 'stopped by a second error');
  }

  private async stop(reason: string, code: number) {
    const { settings, log, readiness, traffic } = this.service;
    this.endingSinceMs = performance.now();
    readiness.isReady = false;
    for (const server of [this.server, this.admin]) server.drain();
    log.info({ reason, inFlight: traffic.size }, 'stopping');
    this.service.stopping?.();
    await sleep(settings.drainMs);
    const late = () => this.exit(1, { inFlight: traffic.size }, 'stopped by SHUTDOWN_TIMEOUT_MS');
    setTimeout(late, settings.shutdownTimeoutMs);
    await this.server.finish();
    for (const used of this.service.closes) await used?.close();
    await this.admin.finish();
    this.exit(code, {}, 'stopped');
  }

  // The log's own exit handler writes out what it still holds.
  private exit(code: number, fields: object, message: string) {
    this.service.traffic.logEnded();
    this.service.log[code === 0 ? 'info' : 'error'](fields, message);
    process.exit(code);
  }
}
