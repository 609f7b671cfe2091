import type { RequestHandler } from 'express';
import { send } from '../../chassis/send';

/** Answers with the OpenAPI 3.1 document of the public routes. */
export function openApi(): RequestHandler {
  let json: string | undefined;
  return function openApi(_req, res) {
    json ??= JSON.stringify(createDocument());
    res.setHeader('server-timing', res.locals.record.serverTiming());
    send(res, 200, 'application/json', json);
  };
}

// Loaded when it is asked for: to make it takes a tenth of the time that the service takes to start.
function createDocument() {
  const document: typeof import('./openapi-document') = require('./openapi-document');
  return document.createDocument();
}
