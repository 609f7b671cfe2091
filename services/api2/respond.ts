import type { RequestHandler } from 'express';

/** Answers with `greeting`. */
export function respond(greeting: string): RequestHandler {
  const body = Buffer.from(greeting);
  return function respond(_req, res) {
    res.setHeader('content-type', 'text/plain; charset=utf-8');
    res.setHeader('content-length', body.length);
    res.end(body);
  };
}
