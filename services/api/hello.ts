import type { ErrorRequestHandler, RequestHandler, Response } from 'express';
import type { NextHop } from '../../chassis/next-hop/client';
import { HopFailure } from '../../chassis/next-hop/failure';
import { statusOfAnswer, statusOfFailure } from '../../chassis/proxy-status';
import { sendText } from '../../chassis/send';

/** Asks api2 and answers with its text. */
export function hello(api2: NextHop): RequestHandler {
  return async function hello(_req, res) {
    const answer = await api2.get('/respond', res.locals.record);
    if (answer.isSuccess) return sendTimed(res, 200, answer.text());
    res.setHeader('proxy-status', statusOfAnswer('api', api2.name, answer));
    sendTimed(res, 500, `Error from api2: ${answer.status}`);
  };
}

/** What `/hello` answers when api2 gave no usable answer. */
export function helloFailed(): ErrorRequestHandler {
  return function helloFailed(error, _req, res, next) {
    if (!(error instanceof HopFailure)) return next(error);
    // Our own bound is not api2's failure.
    if (error.type === 'connection_limit_reached') return next(error);
    res.setHeader('proxy-status', statusOfFailure('api', error));
    sendTimed(res, 500, 'Internal error contacting api2');
  };
}

function sendTimed(res: Response, status: number, text: string) {
  res.setHeader('server-timing', res.locals.record.serverTiming());
  sendText(res, status, text);
}
