import express, { type Express } from 'express';
import { methodNotAllowed, notFound, problemHandler } from '../../chassis/http/problem';
import type { Traffic } from '../../chassis/telemetry/traffic';
import type { BookStore } from './book-store';
import { books } from './books';
import type { FaultInjector } from './fault';
import { respond } from './respond';

export interface AppOptions {
  traffic: Traffic;
  /** Undefined if fault injection is off. */
  faultInjector: FaultInjector | undefined;
  greeting: string;
  store: BookStore;
}

/** The path of a request through api2, in order. */
export function createApp({ traffic, faultInjector, greeting, store }: AppOptions): Express {
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());
  if (faultInjector) app.use(faultInjector.middleware());

  app.route('/respond').get(respond(greeting)).all(methodNotAllowed('GET', 'HEAD'));
  app.use(books(store));

  app.use(notFound());
  app.use(problemHandler());
  return app;
}
