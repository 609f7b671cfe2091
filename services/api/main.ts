import { createAdminApp, Readiness } from '../../chassis/admin';
import { createLogger } from '../../chassis/logger';
import { NextHop } from '../../chassis/next-hop/client';
import { run } from '../../chassis/run';
import { Traffic } from '../../chassis/traffic';
import { createApp } from './app';
import { readSettings } from './settings';

void run(() => {
  const settings = readSettings(process.env);
  const log = createLogger('api', settings);
  const traffic = new Traffic(log);
  const readiness = new Readiness();
  const api2 = new NextHop({ name: 'api2', ...settings.api2, log });
  const app = createApp({ traffic, api2, maxInFlight: settings.maxInFlight });
  const adminApp = createAdminApp(readiness);
  return { settings, log, app, adminApp, traffic, readiness, close: () => api2.close() };
});
