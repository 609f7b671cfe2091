import { IncomingMessage, type RequestListener, ServerResponse } from 'node:http';
import express, { type Express } from 'express';

/**
 * Returns options for `createServer` that make it create requests and responses with Express's prototypes.
 * Without them, Express changes the prototype of each one, which costs a tenth of the throughput
 * (docs/decisions/0008-hot-path.md).
 */
export function expressClassesFor(app: RequestListener | Express) {
  if (!('request' in app)) return {};
  class AppRequest extends IncomingMessage {}
  class AppResponse extends ServerResponse {}
  app.request = assignProperties(AppRequest.prototype, express.request, app);
  app.response = assignProperties(AppResponse.prototype, express.response, app);
  return { IncomingMessage: AppRequest, ServerResponse: AppResponse };
}

function assignProperties<Source extends object>(target: object, source: Source, app: Express): Source {
  return Object.assign(Object.defineProperties(target, Object.getOwnPropertyDescriptors(source)), {
    app,
  }) as Source;
}
