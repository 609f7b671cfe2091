import { STATUS_CODES } from 'node:http';
import type { ErrorRequestHandler, RequestHandler, Response } from 'express';
import { send } from './send';

/**
 * An error that is answered as a problem document (RFC 9457).
 * `detail` is shown to the client, so it says nothing about the inside.
 */
export class Problem extends Error {
  constructor(
    readonly status: number,
    /** A plain word, or an error type of RFC 9209. */
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

/** Answers any method with 405, naming those that are allowed. */
export function methodNotAllowed(...methods: string[]): RequestHandler {
  const headers = { allow: methods.join(', ') };
  return function methodNotAllowed() {
    throw new Problem(405, 'method_not_allowed', { detail: `Use one of ${headers.allow}.`, headers });
  };
}

/** Answers what no route took. */
export function notFound(): RequestHandler {
  return function notFound() {
    throw nothingHere();
  };
}

/** What is answered for a path at which there is nothing, or nothing any more. */
export function nothingHere() {
  return new Problem(404, 'not_found', { detail: 'There is nothing at this path.' });
}

/** The one handler that answers errors. What is not a problem is a fault of the service: a 500 that tells nothing. */
export function answerProblem(): ErrorRequestHandler {
  return function answerProblem(error: unknown, _req, res, _next) {
    sendProblem(res, error instanceof Problem ? error : asProblem(error));
  };
}

/** Sends `problem` as an RFC 9457 document, and records its cause. If the headers were already sent, the response is destroyed. */
export function sendProblem(res: Response, problem: Problem) {
  const { detail, headers, members, cause } = problem.options;
  if (cause !== undefined) res.locals.record.failedBy(problem.code, cause);
  if (res.headersSent) return void res.destroy();
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
  res.setHeader('server-timing', res.locals.record.serverTiming());
  send(res, problem.status, 'application/problem+json', JSON.stringify(document));
}

// Express and its body parser mark what the client did wrong with a 4xx `status`, and `expose`.
function asProblem(error: unknown) {
  const { status } = Object(error) as { status?: unknown };
  if (typeof status === 'number' && status >= 400 && status < 500) return new Problem(status, 'bad_request');
  return new Problem(500, 'internal_error', { cause: error ?? new Error(`thrown: ${String(error)}`) });
}
