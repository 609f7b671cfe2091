import type { IncomingHttpHeaders } from 'node:http';
import { type RequestHandler, type Response, Router } from 'express';
import { type NextHop, NextHopError } from 'next-hop';
import type { Dispatcher } from 'undici';
import { hopByHopHeaders } from '../../chassis/http/hop-by-hop';
import { rawJsonBody } from '../../chassis/http/json-body';
import { methodNotAllowed, notFoundProblem } from '../../chassis/http/problem';
import { queryOf } from '../../chassis/http/request-target';
import type { RequestRecord } from '../../chassis/telemetry/request-record';

/** The requests that are forwarded to `nextHop`. */
export interface Route {
  path: string;
  methods: readonly string[];
  nextHop: NextHop<RequestRecord>;
}

// undici sets `content-length` from the body.
const REQUEST_HEADERS = ['accept', 'content-type', 'if-match', 'if-none-match', 'idempotency-key'];
const RESPONSE_HEADERS = [
  'content-type',
  'content-length',
  'etag',
  'location',
  'link',
  'allow',
  'cache-control',
  'retry-after',
];
// A body has no meaning in a GET, HEAD or DELETE request (RFC 9110, section 9.3), so it is not forwarded.
const METHODS_WITHOUT_BODY = new Set(['GET', 'HEAD', 'DELETE']);
const CLIENT_DISCONNECTED = new Error('the client disconnected');
const READ_AHEAD_BYTES = 1024 * 1024;

/**
 * Forwards requests by a table of routes. Other methods on these paths get 405. Request bodies are JSON of at
 * most 100 kB. A request is forwarded when its complete body has arrived, and its response is read up to 1 MiB ahead
 * of the client, so that for responses up to that size a slow client does not hold a connection to the next hop.
 * @param checks run before the body is read
 * @param limit rejects a request when too many are in flight; the gateway runs it again once the body has arrived
 */
export function gateway(
  checks: readonly RequestHandler[],
  limit: RequestHandler,
  routes: readonly Route[],
): Router {
  const router = Router();
  for (const { path, methods, nextHop } of routes)
    router.route(path).all(allowMethods(methods), ...checks, readBody(), limit, forward(nextHop));
  return router;
}

function allowMethods(methods: readonly string[]): RequestHandler {
  const reject = methodNotAllowed(...methods);
  return function allowMethods(req, res, next) {
    if (methods.includes(req.method)) next();
    else reject(req, res, next);
  };
}

function readBody(): RequestHandler {
  const read = rawJsonBody();
  return function readBody(req, res, next) {
    if (METHODS_WITHOUT_BODY.has(req.method)) next();
    else read(req, res, next);
  };
}

function forward(nextHop: NextHop<RequestRecord>): RequestHandler {
  return async function forward(req, res) {
    if (Object.values(req.params).some(isUnsafeSegment)) throw notFoundProblem();
    const { record } = res.locals;
    const request = {
      method: req.method as Dispatcher.HttpMethod,
      path: req.path + queryOf(req),
      headers: [...record.forwardedHeaders, ...pickHeaders(req.headers, REQUEST_HEADERS)],
      body: (req.body as Buffer | undefined) ?? null,
      context: record,
      allowProbe: !record.carriesFault,
    };
    await new Promise<void>((resolve, reject) => {
      nextHop.dispatch(request, new ResponseForwarder(nextHop.name, res, resolve, reject));
    });
  };
}

// A next hop that resolves such a segment would route the request to another path.
function isUnsafeSegment(segment: unknown) {
  return segment === '.' || segment === '..' || /[/\\]/.test(String(segment));
}

/** Streams the response of the next hop to the client. */
class ResponseForwarder implements Dispatcher.DispatchHandler {
  constructor(
    private readonly nextHop: string,
    private readonly res: Response,
    private readonly resolve: () => void,
    private readonly reject: (error: Error) => void,
  ) {}

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.res.locals.record.addEventListener('abort', () => controller.abort(CLIENT_DISCONNECTED));
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: IncomingHttpHeaders,
  ) {
    if (statusCode < 200) return;
    const { 'content-encoding': coding } = headers;
    // The gateway does not request any content coding.
    if (coding !== undefined && coding !== 'identity')
      return controller.abort(new NextHopError('http_response_content_coding', this.nextHop));
    const { res } = this;
    res.statusCode = statusCode;
    const forwarded = pickHeaders(headers, RESPONSE_HEADERS);
    for (let i = 0; i < forwarded.length; i += 2)
      res.setHeader(forwarded[i] as string, forwarded[i + 1] as string);
    res.locals.record.setTimingHeaders();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer) {
    const { res } = this;
    res.locals.record.countBuffered(chunk.length);
    res.write(chunk);
    if (res.writableLength <= READ_AHEAD_BYTES) return;
    controller.pause();
    res.once('drain', () => controller.resume());
  }

  onResponseEnd() {
    this.res.end();
    this.resolve();
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error) {
    if (!this.res.headersSent) for (const name of RESPONSE_HEADERS) this.res.removeHeader(name);
    this.reject(error);
  }
}

function pickHeaders(headers: IncomingHttpHeaders, names: readonly string[]): string[] {
  const dropped = hopByHopHeaders(headers);
  return names.flatMap((name) => {
    const value = headers[name];
    return value === undefined || dropped.includes(name) ? [] : [name, String(value)];
  });
}
