import { IncomingMessage, type RequestListener, ServerResponse } from 'node:http';
import express, { type Express } from 'express';

/**
 * Options for `createServer` by which requests and answers are made as an Express app wants them. Without
 * them it changes the prototype of each, which costs a tenth of the throughput
 * (docs/decisions/0008-hot-path.md).
 */
export function classesFor(app: RequestListener | Express) {
  if (!('request' in app)) return {};
  class AppRequest extends IncomingMessage {}
  class AppResponse extends ServerResponse {}
  app.request = adopt(AppRequest.prototype, express.request, app);
  app.response = adopt(AppResponse.prototype, express.response, app);
  return { IncomingMessage: AppRequest, ServerResponse: AppResponse };
}

function adopt<Own extends object>(own: object, theirs: Own, app: Express): Own {
  return Object.assign(Object.defineProperties(own, Object.getOwnPropertyDescriptors(theirs)), {
    app,
  }) as Own;
}
