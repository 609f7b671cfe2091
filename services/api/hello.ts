import type { ErrorRequestHandler, RequestHandler, Response } from 'express';
import { NextHopError } from 'next-hop';
import { proxyStatusOfError, proxyStatusOfResponse } from '../../chassis/http/proxy-status';
import { sendText } from '../../chassis/http/send';
import type { Get } from './next-hops/coalesced-get';

/** Calls api2 and responds with the text that it returns. */
export function hello(get: Get): RequestHandler {
  return async function hello(_req, res) {
    const { record } = res.locals;
    const response = await get('/respond', record.forwardedHeaders, record);
    if (response.ok) sendWithTiming(res, 200, response.text());
    else sendApi2Status(res, response.statusCode);
  };
}

/** Sends the response of `/hello` for failed calls to api2. */
export function helloErrorHandler(): ErrorRequestHandler {
  return function helloErrorHandler(error, _req, res, next) {
    // This limit is api's own, so reaching it is not a failure of api2.
    if (!(error instanceof NextHopError) || error.code === 'connection_limit_reached') return next(error);
    if (error.statusCode !== undefined && !isSuccess(error.statusCode))
      return sendApi2Status(res, error.statusCode);
    res.setHeader('proxy-status', proxyStatusOfError('api', error));
    sendWithTiming(res, 500, 'Internal error contacting api2');
  };
}

function sendApi2Status(res: Response, statusCode: number) {
  res.setHeader('proxy-status', proxyStatusOfResponse('api', 'api2', statusCode));
  sendWithTiming(res, 500, `Error from api2: ${statusCode}`);
}

function sendWithTiming(res: Response, status: number, text: string) {
  res.locals.record.setTimingHeaders();
  sendText(res, status, text);
}

function isSuccess(statusCode: number) {
  return statusCode >= 200 && statusCode < 300;
}
