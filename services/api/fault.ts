import type { RequestHandler } from 'express';
import { Problem } from '../../chassis/http/problem';
import { parseFault, X_FAULT_EXPECTED } from '../../contract/fault';

/** Forwards the fault that a client requests with `x-fault` to api2, which injects it. */
export function forwardFault(): RequestHandler {
  return function forwardFault(req, res, next) {
    const { 'x-fault': header } = req.headers;
    if (header === undefined) return next();
    if (parseFault(String(header)) === undefined)
      throw new Problem(400, 'invalid_fault', { detail: X_FAULT_EXPECTED });
    const { record } = res.locals;
    record.carriesFault = true;
    record.forwardHeader('x-fault', req.headers);
    next();
  };
}
