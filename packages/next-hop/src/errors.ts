/** Why an exchange failed: the error types of RFC 9209, section 2.3, unchanged. */
export type NextHopErrorCode =
  | 'dns_error'
  | 'dns_timeout'
  | 'connection_refused'
  | 'connection_timeout'
  | 'connection_terminated'
  | 'tls_certificate_error'
  | 'http_response_timeout'
  | 'http_response_incomplete'
  | 'http_response_body_size'
  | 'http_response_header_section_size'
  | 'http_response_content_coding'
  | 'http_protocol_error'
  | 'connection_limit_reached'
  | 'destination_unavailable'
  | 'proxy_internal_error';

/** An exchange ended without a usable response. `cause` is the error of undici or Node, if there was one. */
export class NextHopError extends Error {
  override readonly name = 'NextHopError';
  readonly code: NextHopErrorCode;
  /** The `name` option of the `NextHop`. */
  readonly nextHop: string;
  /** The status of the response, if its headers had arrived before the exchange failed. */
  readonly statusCode: number | undefined;

  constructor(
    code: NextHopErrorCode,
    nextHop: string,
    options: { cause?: unknown; statusCode?: number | undefined } = {},
  ) {
    super(`${nextHop}: ${code}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.nextHop = nextHop;
    this.statusCode = options.statusCode;
  }
}

/** Failures after which a GET or HEAD is retried: there is no connection, or it closed before a response. */
export const CONNECTION_FAILURES: ReadonlySet<NextHopErrorCode> = new Set([
  'connection_refused',
  'connection_terminated',
  'connection_timeout',
]);

/** Failures in which no connection was established. */
export const NO_CONNECTION: ReadonlySet<NextHopErrorCode> = new Set([
  'dns_error',
  'dns_timeout',
  'connection_refused',
  'connection_timeout',
]);

/** Other failures of a single endpoint. A response that is too large is not one, because all would send it. */
export const ENDPOINT_FAILURES: ReadonlySet<NextHopErrorCode> = new Set([
  'http_response_timeout',
  'http_response_incomplete',
  'http_response_header_section_size',
  'http_protocol_error',
  'tls_certificate_error',
]);

/** Whether the status is 502, 503 or 504, after which another endpoint may be able to serve the request. */
export function isGatewayError(statusCode: number) {
  return statusCode >= 502 && statusCode <= 504;
}

const BY_CODE: Readonly<Record<string, NextHopErrorCode>> = {
  ENOTFOUND: 'dns_error',
  ENODATA: 'dns_error',
  EAI_AGAIN: 'dns_error',
  EAI_FAIL: 'dns_error',
  EAI_NODATA: 'dns_error',
  ETIMEOUT: 'dns_timeout',
  ECONNREFUSED: 'connection_refused',
  EHOSTUNREACH: 'connection_refused',
  ENETUNREACH: 'connection_refused',
  EADDRNOTAVAIL: 'connection_refused',
  // For example, an IPv6 address on a system without IPv6.
  EAFNOSUPPORT: 'connection_refused',
  UND_ERR_CONNECT_TIMEOUT: 'connection_timeout',
  ETIMEDOUT: 'connection_timeout',
  ECONNRESET: 'connection_terminated',
  EPIPE: 'connection_terminated',
  UND_ERR_SOCKET: 'connection_terminated',
  UND_ERR_HEADERS_TIMEOUT: 'http_response_timeout',
  UND_ERR_BODY_TIMEOUT: 'http_response_timeout',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'http_response_incomplete',
  UND_ERR_RES_EXCEEDED_MAX_SIZE: 'http_response_body_size',
  UND_ERR_HEADERS_OVERFLOW: 'http_response_header_section_size',
  HPE_HEADER_OVERFLOW: 'http_response_header_section_size',
  EPROTO: 'http_protocol_error',
  // undici's parser accepts some invalid responses, such as the status 000, which then fail an assertion.
  ERR_ASSERTION: 'http_protocol_error',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'tls_certificate_error',
  SELF_SIGNED_CERT_IN_CHAIN: 'tls_certificate_error',
  HOSTNAME_MISMATCH: 'tls_certificate_error',
  INVALID_CA: 'tls_certificate_error',
};

const BY_CODE_PREFIX: readonly (readonly [prefix: string, code: NextHopErrorCode])[] = [
  ['CERT_', 'tls_certificate_error'],
  ['UNABLE_TO_', 'tls_certificate_error'],
  ['ERR_TLS_CERT', 'tls_certificate_error'],
  ['ERR_SSL_', 'http_protocol_error'],
  ['HPE_', 'http_protocol_error'],
];

/**
 * Maps an error of undici or Node to an error code.
 * @param hasHeaders whether the headers of the response had arrived: undici has one code for a connection closed
 *   without a byte and for a truncated body, and one for a body of the wrong length and for two content lengths
 */
export function errorCode(error: unknown, hasHeaders: boolean): NextHopErrorCode {
  const { code, name, message = '' } = error as NodeJS.ErrnoException;
  // A chunked body was truncated on a connection without keep-alive.
  if (name === 'HTTPParserError' && hasHeaders && message.includes('EOF')) return 'http_response_incomplete';
  // An unexpected 100 or 101; undici has no code of its own for them.
  if (code === 'UND_ERR_SOCKET' && /^bad (upgrade|response)$/.test(message)) return 'http_protocol_error';
  const mapped =
    lookUp(code) ?? (name === 'HTTPParserError' ? 'http_protocol_error' : 'proxy_internal_error');
  if (mapped === 'connection_terminated' && hasHeaders) return 'http_response_incomplete';
  if (mapped === 'http_response_incomplete' && !hasHeaders) return 'http_protocol_error';
  return mapped;
}

/** Maps an error of a lookup, which may be a custom one, to an error code. */
export function lookupErrorCode(error: unknown): NextHopErrorCode {
  return Object(error).code === 'ETIMEOUT' ? 'dns_timeout' : 'dns_error';
}

function lookUp(code: string | undefined): NextHopErrorCode | undefined {
  if (code === undefined) return undefined;
  return BY_CODE[code] ?? BY_CODE_PREFIX.find(([prefix]) => code.startsWith(prefix))?.[1];
}
