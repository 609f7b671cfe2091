import type { RequestHandler } from 'express';
import { send } from '../../chassis/http/send';

/** Serves the OpenAPI 3.1 document of the public routes. */
export function openApi(): RequestHandler {
  let json: string | undefined;
  return function openApi(_req, res) {
    json ??= JSON.stringify(createDocument());
    res.locals.record.setTimingHeaders();
    send(res, 200, 'application/json', json);
  };
}

// Loaded on the first request, because creating the document takes a tenth of the service's startup time.
function createDocument() {
  const document: typeof import('./openapi-document') = require('./openapi-document');
  return document.createDocument();
}
