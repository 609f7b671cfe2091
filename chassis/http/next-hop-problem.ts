import type { ErrorRequestHandler } from 'express';
import { NextHopError, type NextHopErrorCode } from 'next-hop';
import { Problem } from './problem';
import { proxyStatusOfError } from './proxy-status';

const DETAILS: Readonly<Record<number, string>> = {
  502: 'The next hop sent no usable response.',
  503: 'The next hop is temporarily unavailable.',
  504: 'The next hop did not respond in time.',
};

const STATUSES: Readonly<Partial<Record<NextHopErrorCode, number>>> = {
  dns_timeout: 504,
  connection_timeout: 504,
  http_response_timeout: 504,
  connection_limit_reached: 503,
  destination_unavailable: 503,
};

/** Converts a `NextHopError` to the problem that `service` responds with. */
export function nextHopErrorToProblem(service: string): ErrorRequestHandler {
  return function nextHopErrorToProblem(error, _req, _res, next) {
    if (!(error instanceof NextHopError)) return next(error);
    const status = STATUSES[error.code] ?? 502;
    const headers = { 'proxy-status': proxyStatusOfError(service, error) };
    const retryAfter = status === 503 ? { 'retry-after': '1' } : {};
    next(
      new Problem(status, error.code, {
        detail: DETAILS[status] as string,
        headers: { ...headers, ...retryAfter },
      }),
    );
  };
}
