import express, { type Express, type Router } from 'express';
import { pino } from 'pino';
import type { Metrics } from './metrics';
import { answerProblem, methodNotAllowed, notFound } from './problem';
import { Traffic } from './traffic';

/** Whether a service wants traffic: not before it listens, not once it stops, not without what it needs. */
export class Readiness {
  isReady = false;

  constructor(readonly hasWhatItNeeds: () => Promise<boolean> = async () => true) {}

  async status(): Promise<'ok' | 'stopping' | 'waiting'> {
    if (!this.isReady) return 'stopping';
    return (await this.hasWhatItNeeds()) ? 'ok' : 'waiting';
  }
}

/** Traffic for the admin port: its requests are neither logged nor counted. */
export function unloggedTraffic() {
  return new Traffic({ log: pino({ level: 'silent' }) });
}

/**
 * The app of the admin port: `/livez` says that the process works, `/readyz` that it wants traffic,
 * `/metrics` gives the Prometheus exposition; `routes` are a service's own.
 * Probes write no log lines.
 */
export function createAdminApp(readiness: Readiness, metrics: Metrics, routes?: Router): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag');
  app.use(unloggedTraffic().record());
  const only = methodNotAllowed('GET', 'HEAD');
  app
    .route('/livez')
    .get((_req, res) => void res.type('text/plain').send('ok\n'))
    .all(only);
  app
    .route('/readyz')
    .get(async (_req, res) => {
      const status = await readiness.status();
      res
        .status(status === 'ok' ? 200 : 503)
        .type('text/plain')
        .send(`${status}\n`);
    })
    .all(only);
  app
    .route('/metrics')
    .get(
      async (_req, res) => void res.type(metrics.registry.contentType).end(await metrics.registry.metrics()),
    )
    .all(only);
  if (routes) app.use(routes);
  app.use(notFound());
  app.use(answerProblem());
  return app;
}
