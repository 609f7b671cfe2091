import type { Response } from 'express';

/** Sends a whole response. Its length is computed here, from the body that is sent. */
export function send(res: Response, status: number, contentType: string, body: string | Buffer) {
  res.statusCode = status;
  res.setHeader('content-type', contentType);
  // Node sets it by itself, but not in the response to a HEAD request.
  res.setHeader('content-length', Buffer.byteLength(body));
  // A string leaves in one write with the headers.
  res.end(body);
}

/** Sends a whole text response. */
export function sendText(res: Response, status: number, text: string) {
  send(res, status, 'text/plain; charset=utf-8', text);
}
