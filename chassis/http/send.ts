import type { Response } from 'express';

/** Sends a complete response. `Content-Length` is computed from `body`. */
export function send(res: Response, status: number, contentType: string, body: string | Buffer) {
  res.statusCode = status;
  res.setHeader('content-type', contentType);
  // Node would set it too, but not in the response to a HEAD request.
  res.setHeader('content-length', Buffer.byteLength(body));
  // Node writes a string together with the headers.
  res.end(body);
}

/** Sends a complete text response. */
export function sendText(res: Response, status: number, text: string) {
  send(res, status, 'text/plain; charset=utf-8', text);
}
