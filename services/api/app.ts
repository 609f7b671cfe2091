import express, { type Express } from 'express';
import type { NextHop } from 'next-hop';
import { nextHopErrorToProblem } from '../../chassis/http/next-hop-problem';
import { methodNotAllowed, notFound, problemHandler } from '../../chassis/http/problem';
import type { Logger } from '../../chassis/telemetry/logger';
import type { RequestRecord } from '../../chassis/telemetry/request-record';
import type { Traffic } from '../../chassis/telemetry/traffic';
import { data } from './data';
import { forwardFault } from './fault';
import { gateway } from './gateway';
import { hello, helloErrorHandler } from './hello';
import { coalescedGet, plainGet } from './next-hops/coalesced-get';
import { openApi } from './openapi';
import { page } from './page';

export interface AppOptions {
  traffic: Traffic;
  log: Logger;
  api2: NextHop<RequestRecord>;
  external: NextHop<RequestRecord>;
  /** Whether concurrent requests for `/hello` share one exchange (request coalescing). */
  collapse: boolean;
  /** Whether the header `x-fault` is forwarded to api2. */
  faults: boolean;
  /** The path and query of the URL that `/data` relays. */
  externalPath: string;
  maxInFlight: number;
}

/** The path of a request through api, in order. */
export function createApp(options: AppOptions): Express {
  const { traffic, log, api2, external, collapse, faults, externalPath, maxInFlight } = options;
  const app = express();
  app.disable('x-powered-by').disable('etag').set('query parser', false);

  app.use(traffic.record());
  // The limit applies within the routes, so that logs and metrics name the route of a rejected request.
  const limit = traffic.limit(maxInFlight, 'api');
  const fault = faults ? [forwardFault()] : [];

  app
    .route('/hello')
    .get(limit, ...fault, hello(collapse ? coalescedGet(api2) : plainGet(api2)), helloErrorHandler())
    .all(methodNotAllowed('GET', 'HEAD'));
  app
    .route('/data')
    .get(limit, data(coalescedGet(external), externalPath, log))
    .all(methodNotAllowed('GET', 'HEAD'));
  app.route('/openapi.json').get(limit, openApi()).all(methodNotAllowed('GET', 'HEAD'));
  app.use(
    gateway([limit, ...fault], limit, [
      { path: '/books', methods: ['GET', 'HEAD', 'POST'], nextHop: api2 },
      { path: '/books/:id', methods: ['GET', 'HEAD', 'PUT', 'DELETE'], nextHop: api2 },
    ]),
  );
  app.use(limit, page(faults));

  app.use(notFound());
  app.use(nextHopErrorToProblem('api'));
  app.use(problemHandler());
  return app;
}
