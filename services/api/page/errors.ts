import type { Failure } from './request.js';

const MESSAGES: Readonly<Record<string, string>> = {
  dns_error: 'could not be reached: its host name does not resolve',
  dns_timeout: 'could not be reached: resolving its host name timed out',
  connection_refused: 'refused the connection',
  connection_timeout: 'did not accept a connection in time',
  connection_terminated: 'closed the connection without a response',
  tls_certificate_error: 'has an invalid TLS certificate',
  http_response_timeout: 'did not respond in time',
  http_response_incomplete: 'sent an incomplete response',
  http_response_body_size: 'sent a response body that is too large',
  http_response_header_section_size: 'sent response headers that are too large',
  http_response_content_coding: 'sent a response with a content coding that was not requested',
  http_protocol_error: 'sent an invalid HTTP response',
  connection_limit_reached: "could not be called, because all of api's connections to it are busy",
  destination_unavailable: 'failed repeatedly, so api waits for up to a second before it tries again',
  proxy_internal_error: 'could not be called because of an unexpected error in api',
  database_unavailable: 'cannot use its database at the moment',
  internal_error: 'had an internal error',
};

/** Describes a failure in a sentence, with its type in parentheses. */
export function describeFailure({ component, type }: Failure): string {
  if (component === 'browser')
    return type === 'incomplete' ? 'The response was cut off in the middle' : 'api could not be reached';
  const name = component === 'external' ? 'The external API' : component;
  const [, status] = type.split('received ');
  if (status !== undefined) return `${name} responded with the status ${status} (${type})`;
  if (name === 'api' && type === 'connection_limit_reached')
    return `api has too many requests in flight (${type})`;
  return `${name} ${MESSAGES[type] ?? 'returned an unusable response'} (${type})`;
}
