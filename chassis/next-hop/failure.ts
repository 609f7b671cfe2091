/**
 * Why there is no usable answer from a next hop: error types of RFC 9209, section 2.3, the one
 * vocabulary of the log field `error`, the metric label `error`, `Proxy-Status` and problem documents.
 */
export type FailureType =
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

/** A next hop gave no usable answer. `cause` is what the HTTP client threw, where it threw something. */
export class HopFailure extends Error {
  constructor(
    readonly type: FailureType,
    readonly nextHop: string,
    options?: { cause?: unknown },
  ) {
    super(`${nextHop}: ${type}`, options);
  }
}

/** The caller went away before there was an answer: nobody is left to tell. */
export class CallerLeft extends Error {}

/** Nothing was asked of a next hop that refused, reset or never took the connection: a safe request may be sent again. */
export const RETRYABLE: ReadonlySet<FailureType> = new Set([
  'connection_refused',
  'connection_terminated',
  'connection_timeout',
]);

/** Whether a status says that this replica cannot serve the request, while another one may: 502, 503 or 504. */
export function isGatewayError(status: number) {
  return status >= 502 && status <= 504;
}

/** Failures of one replica; a response that is too large or encoded would be the same from another one. */
export const BLAMES_ADDRESS: ReadonlySet<FailureType> = new Set([
  'http_response_timeout',
  'http_response_incomplete',
  'http_response_header_section_size',
  'http_protocol_error',
  'tls_certificate_error',
]);

const BY_CODE: Readonly<Record<string, FailureType>> = {
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
  // undici asserts what a parser let through, such as the status 000.
  ERR_ASSERTION: 'http_protocol_error',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'tls_certificate_error',
  SELF_SIGNED_CERT_IN_CHAIN: 'tls_certificate_error',
  HOSTNAME_MISMATCH: 'tls_certificate_error',
  INVALID_CA: 'tls_certificate_error',
};

const BY_CODE_PREFIX: readonly (readonly [prefix: string, type: FailureType])[] = [
  ['CERT_', 'tls_certificate_error'],
  ['UNABLE_TO_', 'tls_certificate_error'],
  ['ERR_TLS_CERT', 'tls_certificate_error'],
  ['ERR_SSL_', 'http_protocol_error'],
  ['HPE_', 'http_protocol_error'],
];

/**
 * Maps what undici or Node threw to the vocabulary.
 * @param answered whether the response's headers had come: undici has one code for a connection that
 *   closed without a byte and a body cut short, and one for a body of the wrong length and two lengths
 */
export function failureType(error: unknown, answered: boolean): FailureType {
  const { code, name, message = '' } = error as NodeJS.ErrnoException;
  // A chunked body whose connection was to close, and did too early.
  if (name === 'HTTPParserError' && answered && message.includes('EOF')) return 'http_response_incomplete';
  // A 101 or 100 that nobody asked for; undici has no code of its own for them.
  if (code === 'UND_ERR_SOCKET' && /^bad (upgrade|response)$/.test(message)) return 'http_protocol_error';
  const type = byCode(code) ?? (name === 'HTTPParserError' ? 'http_protocol_error' : 'proxy_internal_error');
  if (type === 'connection_terminated' && answered) return 'http_response_incomplete';
  if (type === 'http_response_incomplete' && !answered) return 'http_protocol_error';
  return type;
}

function byCode(code: string | undefined): FailureType | undefined {
  if (code === undefined) return undefined;
  return BY_CODE[code] ?? BY_CODE_PREFIX.find(([prefix]) => code.startsWith(prefix))?.[1];
}
