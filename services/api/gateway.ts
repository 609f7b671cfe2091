import type { IncomingHttpHeaders } from 'node:http';
import { type Request, type RequestHandler, type Response, Router } from 'express';
import { hopByHop } from '../../chassis/hop-by-hop';
import { refuseContentCoding } from '../../chassis/json-body';
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

const REQUEST_HEADERS = [
  'accept',
  'content-type',
  'content-length',
  'if-match',
  'if-none-match',
  'idempotency-key',
];
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
const WITHOUT_BODY = new Set(['GET', 'HEAD', 'DELETE']);

/** Passes requests on by a table of routes; on a path of the table, other methods get 405. */
export function gateway(routes: readonly Route[]): Router {
  const router = Router();
  for (const { path, methods, to } of routes) router.route(path).all(only(methods), forward(to));
  return router;
}

function only(methods: readonly string[]): RequestHandler {
  const refuse = methodNotAllowed(...methods);
  return function only(req, res, next) {
    if (methods.includes(req.method)) next();
    else refuse(req, res, next);
  };
}

function forward(hop: NextHop): RequestHandler {
  return async function forward(req, res) {
    // Its header stays behind, and without it the body would be taken for something else.
    if (!WITHOUT_BODY.has(req.method)) refuseContentCoding(req);
    if (Object.values(req.params).some(leadsElsewhere)) throw nothingHere();
    const request = {
      method: req.method,
      path: req.path + queryOf(req),
      headers: selected(req.headers, REQUEST_HEADERS),
      body: hasBody(req) ? req : undefined,
    };
    await hop.forward(request, res.locals.record, answering(res));
  };
}

// A next hop that resolved them could take them for another path.
function leadsElsewhere(segment: unknown) {
  return segment === '.' || segment === '..' || /[/\\]/.test(String(segment));
}

// On a GET or HEAD it has no meaning (RFC 9110, section 9.3.1).
function hasBody({ method, headers }: Request) {
  if (method === 'GET' || method === 'HEAD') return false;
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

function answering(res: Response): Sink {
  return {
    begin(status, headers) {
      res.statusCode = status;
      const passedOn = selected(headers, ANSWER_HEADERS);
      for (let i = 0; i < passedOn.length; i += 2)
        res.setHeader(passedOn[i] as string, passedOn[i + 1] as string);
      res.setHeader('server-timing', res.locals.record.serverTiming());
    },
    write(chunk, onDrained) {
      if (res.write(chunk)) return true;
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
