import type { RequestHandler } from 'express';

/** Answers with `greeting`. */
export function respond(greeting: string): RequestHandler {
  const length = Buffer.byteLength(greeting);
  return function respond(_req, res) {
    res.setHeader('content-type', 'text/plain; charset=utf-8');
    res.setHeader('content-length', length);
    res.end(greeting);
  };
}
