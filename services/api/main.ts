import { createAdminApp, Readiness } from '../../chassis/admin';
import { run } from '../../chassis/lifecycle';
import { createLogger } from '../../chassis/telemetry/logger';
import { Metrics } from '../../chassis/telemetry/metrics';
import { createTracing } from '../../chassis/telemetry/tracing';
import { Traffic } from '../../chassis/telemetry/traffic';
import { createApp } from './app';
import { createNextHops } from './next-hops/next-hops';
import { readSettings } from './settings';

void run(() => {
  const settings = readSettings(process.env);
  const log = createLogger('api', settings);
  const tracing = createTracing('api', process.env, log);
  const metrics: Metrics = new Metrics(() => traffic.size);
  const traffic = new Traffic({ log, metrics, tracing });
  const readiness = new Readiness();
  const { api2, external } = createNextHops(settings, log, metrics);
  const app = createApp({ ...settings, traffic, log, api2, external });
  const adminApp = createAdminApp(readiness, metrics);
  return { settings, log, app, adminApp, traffic, readiness, resources: [api2, external, tracing] };
});
