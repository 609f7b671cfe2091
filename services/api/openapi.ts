import type { RequestHandler } from 'express';

/** Answers with the OpenAPI 3.1 document of the public routes. */
export function openApi(): RequestHandler {
  let json: string | undefined;
  return function openApi(_req, res) {
    json ??= JSON.stringify(createDocument());
    res.setHeader('content-type', 'application/json');
    res.setHeader('content-length', Buffer.byteLength(json));
    res.setHeader('server-timing', res.locals.record.serverTiming());
    res.end(json);
  };
}

// Loaded when it is asked for: to make it takes a tenth of the time that the service takes to start.
function createDocument() {
  const document: typeof import('./openapi-document') = require('./openapi-document');
  return document.createDocument();
}
