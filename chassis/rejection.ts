import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Problem } from './problem';

/** Responds to a request that the server itself rejects. If the headers were already sent, the response is destroyed. */
export type Reject = (res: ServerResponse, problem: Problem) => void;

/** HTTP/1.1 demands a Host (RFC 9112, section 3.2). */
export function lacksHost({ headers, httpVersionMajor, httpVersionMinor }: IncomingMessage) {
  return headers.host === undefined && httpVersionMajor === 1 && httpVersionMinor === 1;
}

export const missingHost = () => new Problem(400, 'bad_request', { detail: 'The Host header is missing.' });

export const unknownExpectation = () =>
  new Problem(417, 'expectation_failed', { detail: 'The only known expectation is 100-continue.' });

/**
 * The problem that `clientError` stands for, or undefined if there is no client to respond to: the connection
 * failed, carried no bytes, or carries another protocol than HTTP, such as TLS.
 */
export function problemOfClientError(error: NodeJS.ErrnoException & { rawPacket?: Buffer }, socket: Socket) {
  switch (error.code) {
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      if (socket.bytesRead === 0) return undefined;
      return new Problem(408, 'request_timeout', { detail: 'The request took too long to arrive.' });
    case 'HPE_HEADER_OVERFLOW':
      return new Problem(431, 'request_header_fields_too_large', { detail: 'The header is too large.' });
    case 'HPE_CHUNK_EXTENSIONS_OVERFLOW':
      return new Problem(413, 'content_too_large', { detail: 'The chunk extensions are too large.' });
  }
  if (!error.code?.startsWith('HPE_') || startsInBinary(socket, error.rawPacket)) return undefined;
  return new Problem(400, 'bad_request', { detail: 'The request is not valid HTTP.' });
}

// Whether the connection's first byte is neither printable ASCII nor a line break.
function startsInBinary({ bytesRead }: Socket, packet: Buffer = Buffer.alloc(0)) {
  const first = packet[0] ?? 0x20;
  return bytesRead === packet.length && (first > 0x7e || (first < 0x20 && first !== 0x0d && first !== 0x0a));
}
