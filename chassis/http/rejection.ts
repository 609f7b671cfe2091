import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Problem } from './problem';

/** Responds to a request that the server itself rejects. If the headers were already sent, it destroys the response. */
export type SendRejection = (res: ServerResponse, problem: Problem) => void;

/** Whether an HTTP/1.1 request lacks the required `Host` header (RFC 9112, section 3.2). */
export function isHostMissing({ headers, httpVersionMajor, httpVersionMinor }: IncomingMessage) {
  return headers.host === undefined && httpVersionMajor === 1 && httpVersionMinor === 1;
}

export const missingHostProblem = () =>
  new Problem(400, 'bad_request', { detail: 'The Host header is missing.' });

export const connectNotAllowedProblem = () =>
  new Problem(405, 'method_not_allowed', {
    detail: 'CONNECT is not supported.',
    headers: { allow: 'GET, HEAD' },
  });

export const unknownExpectationProblem = () =>
  new Problem(417, 'expectation_failed', { detail: 'The only supported expectation is 100-continue.' });

/**
 * Returns the problem for the error of a `clientError` event, or undefined if no response is possible: the
 * connection failed, carried no bytes, or carries a protocol other than HTTP, such as TLS.
 */
export function clientErrorToProblem(error: NodeJS.ErrnoException & { rawPacket?: Buffer }, socket: Socket) {
  switch (error.code) {
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      if (socket.bytesRead === 0) return undefined;
      return new Problem(408, 'request_timeout', { detail: 'The request did not arrive in time.' });
    case 'HPE_HEADER_OVERFLOW':
      return new Problem(431, 'request_header_fields_too_large', {
        detail: 'The request header is too large.',
      });
    case 'HPE_CHUNK_EXTENSIONS_OVERFLOW':
      return new Problem(413, 'content_too_large', { detail: 'The chunk extensions are too large.' });
  }
  if (!error.code?.startsWith('HPE_') || startsWithBinary(socket, error.rawPacket)) return undefined;
  return new Problem(400, 'bad_request', { detail: 'The request is not valid HTTP.' });
}

// Whether the first byte of the connection is neither printable ASCII nor a line break.
function startsWithBinary({ bytesRead }: Socket, packet: Buffer = Buffer.alloc(0)) {
  const first = packet[0] ?? 0x20;
  return bytesRead === packet.length && (first > 0x7e || (first < 0x20 && first !== 0x0d && first !== 0x0a));
}
