import { createAdminApp, Readiness } from '../../chassis/admin';
import { createLogger } from '../../chassis/logger';
import { run } from '../../chassis/run';
import { Traffic } from '../../chassis/traffic';
import { createApp } from './app';
import { readSettings } from './settings';

void run(() => {
  const settings = readSettings(process.env);
  const log = createLogger('api2', settings);
  const traffic = new Traffic(log);
  const readiness = new Readiness();
  const app = createApp({ traffic, greeting: settings.greeting });
  const adminApp = createAdminApp(readiness);
  return { settings, log, app, adminApp, traffic, readiness, close: async () => {} };
});
