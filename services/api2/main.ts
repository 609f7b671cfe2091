import { createAdminApp, Readiness } from '../../chassis/admin';
import { run } from '../../chassis/lifecycle';
import { createLogger } from '../../chassis/telemetry/logger';
import { Metrics } from '../../chassis/telemetry/metrics';
import { createTracing } from '../../chassis/telemetry/tracing';
import { Traffic } from '../../chassis/telemetry/traffic';
import { createApp } from './app';
import { FaultInjector, faultRoutes } from './fault';
import { PostgresBookStore } from './postgres-book-store';
import { readSettings } from './settings';
import { SqliteBookStore } from './sqlite-book-store';

void run(() => {
  const settings = readSettings(process.env);
  const log = createLogger('api2', settings);
  const tracing = createTracing('api2', process.env, log);
  const metrics: Metrics = new Metrics(() => traffic.size);
  const traffic = new Traffic({ log, metrics, tracing });
  const readiness = new Readiness(() => store.isReady());
  const faultInjector = settings.faults ? new FaultInjector(log) : undefined;
  const { databaseUrl, databaseFile } = settings;
  const store = databaseUrl ? new PostgresBookStore(databaseUrl, log) : new SqliteBookStore(databaseFile);
  const app = createApp({ traffic, faultInjector, greeting: settings.greeting, store });
  const adminApp = createAdminApp(readiness, metrics, faultInjector && faultRoutes(faultInjector));
  const onStop = () => faultInjector?.close();
  return { settings, log, app, adminApp, traffic, readiness, onStop, resources: [store, tracing] };
});
