import { STATUS_CODES } from 'node:http';
import type { ErrorRequestHandler, RequestHandler, Response } from 'express';
import { send } from './send';

/**
 * An error that is sent to the client as a problem document (RFC 9457).
 * The client sees `detail`, so it must not reveal anything internal.
 */
export class Problem extends Error {
  constructor(
    readonly status: number,
    /** A plain word such as `not_found`, or an error type of RFC 9209. */
    readonly code: string,
    readonly options: {
      detail?: string;
      headers?: Readonly<Record<string, string>>;
      members?: Readonly<Record<string, unknown>>;
      cause?: unknown;
    } = {},
  ) {
    super(options.detail ?? code, { cause: options.cause });
  }
}

/** Responds 405 to every request; `Allow` lists `methods`. */
export function methodNotAllowed(...methods: string[]): RequestHandler {
  const headers = { allow: methods.join(', ') };
  return function methodNotAllowed() {
    throw new Problem(405, 'method_not_allowed', { detail: `Allowed methods: ${headers.allow}.`, headers });
  };
}

/** Responds 404 to every request. */
export function notFound(): RequestHandler {
  return function notFound() {
    throw notFoundProblem();
  };
}

/** Returns the problem for a path or resource that does not exist. */
export function notFoundProblem() {
  return new Problem(404, 'not_found', { detail: 'No resource exists at this path.' });
}

/**
 * The final error handler. It sends a `Problem`, converts client errors of Express to their 4xx, and any other error to
 * a 500 without details.
 */
export function problemHandler(): ErrorRequestHandler {
  return function problemHandler(error: unknown, _req, res, _next) {
    sendProblem(res, error instanceof Problem ? error : toProblem(error));
  };
}

/** Sends `problem` as an RFC 9457 document, and records its cause. If the headers were already sent, the response is cut off. */
export function sendProblem(res: Response, problem: Problem) {
  const { detail, headers, members, cause } = problem.options;
  if (cause !== undefined) res.locals.record.recordFailure(problem.code, cause);
  if (res.headersSent) return res.locals.record.cutOff();
  const document = {
    type: 'about:blank',
    title: STATUS_CODES[problem.status],
    status: problem.status,
    code: problem.code,
    detail,
    requestId: res.locals.record.requestId,
    ...members,
  };
  for (const [name, value] of Object.entries(headers ?? {})) res.setHeader(name, value);
  res.locals.record.setTimingHeaders();
  send(res, problem.status, 'application/problem+json', JSON.stringify(document));
}

// Express and its body parser give client errors a 4xx `status`.
function toProblem(error: unknown) {
  const { status } = Object(error) as { status?: unknown };
  if (typeof status === 'number' && status >= 400 && status < 500) return new Problem(status, 'bad_request');
  return new Problem(500, 'internal_error', { cause: error ?? new Error(`thrown value: ${String(error)}`) });
}
