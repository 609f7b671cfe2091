import { createAdminApp, Readiness } from '../../chassis/admin';
import { createLogger } from '../../chassis/logger';
import { Metrics } from '../../chassis/metrics';
import { run } from '../../chassis/run';
import { createTracing } from '../../chassis/tracing';
import { Traffic } from '../../chassis/traffic';
import { createApp } from './app';
import { Fault, faultRoutes } from './fault';
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
  const fault = settings.faults ? new Fault(log) : undefined;
  const { databaseUrl, databaseFile } = settings;
  const store = databaseUrl ? new PostgresBookStore(databaseUrl, log) : new SqliteBookStore(databaseFile);
  const app = createApp({ traffic, fault, greeting: settings.greeting, store });
  const adminApp = createAdminApp(readiness, metrics, fault && faultRoutes(fault));
  const stopping = () => fault?.close();
  return { settings, log, app, adminApp, traffic, readiness, stopping, closes: [store, tracing] };
});
