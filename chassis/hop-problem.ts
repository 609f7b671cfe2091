import type { ErrorRequestHandler } from 'express';
import { type FailureType, HopFailure } from './next-hop/failure';
import { Problem } from './problem';
import { statusOfFailure } from './proxy-status';

const DETAILS: Readonly<Record<number, string>> = {
  502: 'The next hop gave no usable answer.',
  503: 'The next hop takes no requests for now.',
  504: 'The next hop did not answer in time.',
};

const STATUSES: Readonly<Partial<Record<FailureType, number>>> = {
  dns_timeout: 504,
  connection_timeout: 504,
  http_response_timeout: 504,
  connection_limit_reached: 503,
  destination_unavailable: 503,
};

/** Turns what the client of a next hop throws into the problem that `service` answers. */
export function hopFailureAsProblem(service: string): ErrorRequestHandler {
  return function hopFailureAsProblem(error, _req, _res, next) {
    if (!(error instanceof HopFailure)) return next(error);
    const status = STATUSES[error.type] ?? 502;
    const headers = { 'proxy-status': statusOfFailure(service, error) };
    const retryAfter = status === 503 ? { 'retry-after': '1' } : {};
    next(
      new Problem(status, error.type, {
        detail: DETAILS[status] as string,
        headers: { ...headers, ...retryAfter },
      }),
    );
  };
}
