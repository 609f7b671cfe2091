import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { Problem } from './problem';

/** Returns a strong entity tag for a representation (RFC 9110, section 8.8.3). */
export function etagOf(representation: string) {
  return `"${createHash('sha256').update(representation).digest('base64url').slice(0, 22)}"`;
}

/**
 * Whether the response to a read is a 304, by `If-None-Match` (RFC 9110, section 13.2.2).
 * @throws {Problem} 412 if `If-Match` does not match
 */
export function isNotModified(headers: IncomingHttpHeaders, etag: string): boolean {
  if (failsIfMatch(headers['if-match'], etag)) throw preconditionFailed();
  return matchesIfNoneMatch(headers['if-none-match'], etag);
}

/**
 * Checks the preconditions of a write to an existing resource (RFC 9110, section 13.2.2).
 * @throws {Problem} 412 if `If-Match` does not match or `If-None-Match` does
 */
export function checkPreconditions(headers: IncomingHttpHeaders, etag: string) {
  if (failsIfMatch(headers['if-match'], etag) || matchesIfNoneMatch(headers['if-none-match'], etag))
    throw preconditionFailed();
}

// Strong comparison: the `W/` prefix is compared too, so a weak tag never matches.
function failsIfMatch(ifMatch: string | undefined, etag: string) {
  return ifMatch !== undefined && ifMatch.trim() !== '*' && !parseEtags(ifMatch).includes(etag);
}

// Weak comparison: the `W/` prefix is ignored.
function matchesIfNoneMatch(ifNoneMatch: string | undefined, etag: string) {
  return (
    ifNoneMatch !== undefined &&
    (ifNoneMatch.trim() === '*' || parseEtags(ifNoneMatch.replaceAll('W/"', '"')).includes(etag))
  );
}

function parseEtags(list: string): string[] {
  return list.match(/(?:W\/)?"[^"]*"/g) ?? [];
}

function preconditionFailed() {
  return new Problem(412, 'precondition_failed', {
    detail: 'The resource has changed: its ETag does not match.',
  });
}
