import type { Failure } from './ask.js';

const WORDS: Readonly<Record<string, string>> = {
  dns_error: 'its name is not known',
  dns_timeout: 'its name was not looked up in time',
  connection_refused: 'it takes no connections',
  connection_timeout: 'no connection came about in time',
  connection_terminated: 'it closed the connection without an answer',
  tls_certificate_error: 'its certificate is not to be trusted',
  http_response_timeout: 'it did not answer in time',
  http_response_incomplete: 'its answer broke off',
  http_response_body_size: 'its answer is too large',
  http_response_header_section_size: 'its headers are too large',
  http_response_content_coding: 'its answer is compressed, which nobody asked for',
  http_protocol_error: 'it does not speak HTTP as it should',
  connection_limit_reached: 'too many requests at once',
  destination_unavailable: 'it failed too often, so it is left alone for a second',
  proxy_internal_error: 'something unforeseen',
  database_unavailable: 'its database is not to be had for now',
  internal_error: 'a fault of its own',
  unreachable: 'api cannot be reached',
};

/** A failure in words, with the machine's word for it. */
export function inWords({ at, type }: Failure): string {
  if (at === 'browser') return WORDS.unreachable as string;
  const word = WORDS[type];
  if (word !== undefined) return `${at}: ${word} (${type})`;
  return `${at}: it answered with what is of no use (${type})`;
}
