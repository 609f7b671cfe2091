import express, { type Express } from 'express';
import type { NextHop } from '../../chassis/next-hop/client';
import { answerProblem, methodNotAllowed, notFound } from '../../chassis/problem';
import type { Traffic } from '../../chassis/traffic';
import { hello, helloFailed } from './hello';

export interface Parts {
  traffic: Traffic;
  api2: NextHop;
  maxInFlight: number;
}

/** The way of a request through api, in order. */
export function createApp({ traffic, api2, maxInFlight }: Parts): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());
  app.use(traffic.limit(maxInFlight, 'api'));

  app.route('/hello').get(hello(api2), helloFailed()).all(methodNotAllowed('GET', 'HEAD'));

  app.use(notFound());
  app.use(answerProblem());
  return app;
}
