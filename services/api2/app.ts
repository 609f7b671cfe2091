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
  // Faults are injected within the routes, so that logs and metrics name the route of an affected request.
  const fault = faultInjector ? [faultInjector.middleware()] : [];

  app
    .route('/respond')
    .get(...fault, respond(greeting))
    .all(methodNotAllowed('GET', 'HEAD'));
  app.use(books(store, fault));

  app.use(notFound());
  app.use(problemHandler());
  return app;
}
