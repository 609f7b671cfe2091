import express, { type Express } from 'express';
import { answerProblem, methodNotAllowed, notFound } from '../../chassis/problem';
import type { Traffic } from '../../chassis/traffic';
import type { BookStore } from './book-store';
import { books } from './books';
import type { Fault } from './fault';
import { respond } from './respond';

export interface Parts {
  traffic: Traffic;
  /** The fault switch; undefined where faults are off. */
  fault: Fault | undefined;
  greeting: string;
  store: BookStore;
}

/** The way of a request through api2, in order. */
export function createApp({ traffic, fault, greeting, store }: Parts): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());
  if (fault) app.use(fault.middleware());

  app.route('/respond').get(respond(greeting)).all(methodNotAllowed('GET', 'HEAD'));
  app.use(books(store));

  app.use(notFound());
  app.use(answerProblem());
  return app;
}
