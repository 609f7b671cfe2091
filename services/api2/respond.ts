import type { RequestHandler } from 'express';
import { sendText } from '../../chassis/http/send';

/** Responds with `greeting`. */
export function respond(greeting: string): RequestHandler {
  return function respond(_req, res) {
    sendText(res, 200, greeting);
  };
}
