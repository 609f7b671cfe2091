import express, { type Express } from 'express';
import { hopFailureAsProblem } from '../../chassis/hop-problem';
import type { Logger } from '../../chassis/logger';
import type { NextHop } from '../../chassis/next-hop/client';
import { answerProblem, methodNotAllowed, notFound } from '../../chassis/problem';
import type { Traffic } from '../../chassis/traffic';
import { data } from './data';
import { gateway } from './gateway';
import { hello, helloFailed } from './hello';
import { openApi } from './openapi';
import { page } from './page';

export interface Parts {
  traffic: Traffic;
  log: Logger;
  api2: NextHop;
  external: NextHop;
  /** Path and query of what `/data` relays. */
  externalPath: string;
  maxInFlight: number;
}

/** The way of a request through api, in order. */
export function createApp({ traffic, log, api2, external, externalPath, maxInFlight }: Parts): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());
  const limit = traffic.limit(maxInFlight, 'api');
  app.use(limit);

  app.route('/hello').get(hello(api2), helloFailed()).all(methodNotAllowed('GET', 'HEAD'));
  app
    .route('/data')
    .get(data(external, externalPath, log))
    .all(methodNotAllowed('GET', 'HEAD'));
  app.route('/openapi.json').get(openApi()).all(methodNotAllowed('GET', 'HEAD'));
  app.use(
    gateway(limit, [
      { path: '/books', methods: ['GET', 'HEAD', 'POST'], to: api2 },
      { path: '/books/:id', methods: ['GET', 'HEAD', 'PUT', 'DELETE'], to: api2 },
    ]),
  );
  app.use(page());

  app.use(notFound());
  app.use(hopFailureAsProblem('api'));
  app.use(answerProblem());
  return app;
}
