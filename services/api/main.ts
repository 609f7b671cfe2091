import { createAdminApp, Readiness } from '../../chassis/admin';
import { createLogger } from '../../chassis/logger';
import { Metrics } from '../../chassis/metrics';
import { NextHop } from '../../chassis/next-hop/client';
import { fallbackLookup } from '../../chassis/next-hop/fallback-lookup';
import { proxyOf } from '../../chassis/next-hop/proxy';
import { run } from '../../chassis/run';
import { createTracing } from '../../chassis/tracing';
import { Traffic } from '../../chassis/traffic';
import { createApp } from './app';
import { readSettings } from './settings';

void run(() => {
  const settings = readSettings(process.env);
  const log = createLogger('api', settings);
  const tracing = createTracing('api', process.env, log);
  const metrics: Metrics = new Metrics(() => traffic.size);
  const traffic = new Traffic({ log, metrics, tracing });
  const readiness = new Readiness();
  const { api2Fallback: fallback, external: outside, maxInFlight } = settings;
  const lookup =
    fallback &&
    fallbackLookup(fallback, (inUse) =>
      log.warn({ nextHop: 'api2', fallback, inUse }, 'fallback state changed'),
    );
  const api2 = new NextHop({ name: 'api2', ...settings.api2, ...(lookup && { lookup }), log, metrics });
  const dispatcher = proxyOf(outside);
  const external = new NextHop({
    name: 'external',
    ...outside,
    ...(dispatcher && { dispatcher }),
    log,
    metrics,
  });
  const app = createApp({ traffic, log, api2, external, externalPath: outside.path, maxInFlight });
  const adminApp = createAdminApp(readiness, metrics);
  return { settings, log, app, adminApp, traffic, readiness, closes: [api2, external, tracing] };
});
