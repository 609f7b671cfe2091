import express, { type Express, type Router } from 'express';
import { pino } from 'pino';
import { methodNotAllowed, notFound, problemHandler } from './http/problem';
import type { Metrics } from './telemetry/metrics';
import { Traffic } from './telemetry/traffic';

/** Whether a service accepts traffic: from when it listens until it stops, while its dependencies are available. */
export class Readiness {
  isAcceptingTraffic = false;

  constructor(readonly areDependenciesReady: () => Promise<boolean> = async () => true) {}

  async status(): Promise<'ok' | 'stopping' | 'waiting'> {
    if (!this.isAcceptingTraffic) return 'stopping';
    return (await this.areDependenciesReady()) ? 'ok' : 'waiting';
  }
}

/** Traffic of the admin port: its requests are neither logged nor counted. */
export function unloggedTraffic() {
  return new Traffic({ log: pino({ level: 'silent' }) });
}

/**
 * Creates the app of the admin port: `/livez` (the process works), `/readyz` (it accepts traffic), `/metrics`
 * (for Prometheus), and the service's own `routes`. Its requests are not logged.
 */
export function createAdminApp(readiness: Readiness, metrics: Metrics, routes?: Router): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag');
  app.use(unloggedTraffic().record());
  const getOnly = methodNotAllowed('GET', 'HEAD');
  app
    .route('/livez')
    .get((_req, res) => void res.type('text/plain').send('ok\n'))
    .all(getOnly);
  app
    .route('/readyz')
    .get(async (_req, res) => {
      const status = await readiness.status();
      res
        .status(status === 'ok' ? 200 : 503)
        .type('text/plain')
        .send(`${status}\n`);
    })
    .all(getOnly);
  app
    .route('/metrics')
    .get(
      async (_req, res) => void res.type(metrics.registry.contentType).end(await metrics.registry.metrics()),
    )
    .all(getOnly);
  if (routes) app.use(routes);
  app.use(notFound());
  app.use(problemHandler());
  return app;
}
