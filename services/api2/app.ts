import express, { type Express } from 'express';
import { answerProblem, methodNotAllowed, notFound } from '../../chassis/problem';
import type { Traffic } from '../../chassis/traffic';
import { respond } from './respond';

export interface Parts {
  traffic: Traffic;
  greeting: string;
}

/** The way of a request through api2, in order. */
export function createApp({ traffic, greeting }: Parts): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());

  app.route('/respond').get(respond(greeting)).all(methodNotAllowed('GET', 'HEAD'));

  app.use(notFound());
  app.use(answerProblem());
  return app;
}
