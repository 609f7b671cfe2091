import type { IncomingHttpHeaders } from 'node:http';
import { type RequestHandler, type Response, Router } from 'express';
import { hopByHop } from '../../chassis/hop-by-hop';
import { rawJsonBody } from '../../chassis/json-body';
import type { NextHop } from '../../chassis/next-hop/client';
import type { Sink } from '../../chassis/next-hop/exchange';
import { methodNotAllowed, nothingHere } from '../../chassis/problem';
import { queryOf } from '../../chassis/request-target';

/** Which requests go where. */
export interface Route {
  path: string;
  methods: readonly string[];
  to: NextHop;
}

// undici sets `content-length` from the body.
const REQUEST_HEADERS = ['accept', 'content-type', 'if-match', 'if-none-match', 'idempotency-key'];
const ANSWER_HEADERS = [
  'content-type',
  'content-length',
  'etag',
  'location',
  'link',
  'allow',
  'cache-control',
  'retry-after',
];
// In a GET, HEAD or DELETE a body has no meaning (RFC 9110, section 9.3), and it is not forwarded.
const WITHOUT_BODY = new Set(['GET', 'HEAD', 'DELETE']);
const READ_AHEAD_BYTES = 1024 * 1024;

/**
 * Forwards requests by a table of routes; on a path of the table, other methods get 405. Request bodies are JSON of at
 * most 100 kB. A request is forwarded when its complete body has arrived, and its response is read up to 1 MiB ahead
 * of the client, so that for responses up to that size a slow client does not hold a connection to the next hop.
 * @param limit rejects a request when too many are in flight; it runs again once the body has arrived
 */
export function gateway(limit: RequestHandler, routes: readonly Route[]): Router {
  const router = Router();
  for (const { path, methods, to } of routes)
    router.route(path).all(only(methods), body(), limit, forward(to));
  return router;
}

function only(methods: readonly string[]): RequestHandler {
  const refuse = methodNotAllowed(...methods);
  return function only(req, res, next) {
    if (methods.includes(req.method)) next();
    else refuse(req, res, next);
  };
}

function body(): RequestHandler {
  const read = rawJsonBody();
  return function body(req, res, next) {
    if (WITHOUT_BODY.has(req.method)) next();
    else read(req, res, next);
  };
}

function forward(hop: NextHop): RequestHandler {
  return async function forward(req, res) {
    if (Object.values(req.params).some(leadsElsewhere)) throw nothingHere();
    const request = {
      method: req.method,
      path: req.path + queryOf(req),
      headers: selected(req.headers, REQUEST_HEADERS),
      body: req.body as Buffer | undefined,
    };
    await hop.forward(request, res.locals.record, responseSink(res));
  };
}

// A next hop that resolved them could take them for another path.
function leadsElsewhere(segment: unknown) {
  return segment === '.' || segment === '..' || /[/\\]/.test(String(segment));
}

function responseSink(res: Response): Sink {
  return {
    begin(status, headers) {
      res.statusCode = status;
      const passedOn = selected(headers, ANSWER_HEADERS);
      for (let i = 0; i < passedOn.length; i += 2)
        res.setHeader(passedOn[i] as string, passedOn[i + 1] as string);
      res.setHeader('server-timing', res.locals.record.serverTiming());
    },
    write(chunk, onDrained) {
      res.locals.record.countBuffered(chunk.length);
      res.write(chunk);
      if (res.writableLength <= READ_AHEAD_BYTES) return true;
      res.once('drain', onDrained);
      return false;
    },
    end: () => void res.end(),
  };
}

function selected(headers: IncomingHttpHeaders, names: readonly string[]): string[] {
  const staysBehind = hopByHop(headers);
  return names.flatMap((name) => {
    const value = headers[name];
    return value === undefined || staysBehind.includes(name) ? [] : [name, String(value)];
  });
}
