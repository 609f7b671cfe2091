import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { Problem } from './problem';

/** A strong entity tag of a representation (RFC 9110, section 8.8.3). */
export function etagOf(representation: string) {
  return `"${createHash('sha256').update(representation).digest('base64url').slice(0, 22)}"`;
}

/**
 * Whether to answer a read with 304 by `If-None-Match` (RFC 9110, section 13.2.2).
 * @throws {Problem} 412 by `If-Match`
 */
export function isNotModified(headers: IncomingHttpHeaders, etag: string): boolean {
  if (isExcluded(headers['if-match'], etag)) throw preconditionFailed();
  return isNamed(headers['if-none-match'], etag);
}

/**
 * Lets a write to a resource that exists go on.
 * @throws {Problem} 412 by `If-Match` or `If-None-Match` (RFC 9110, section 13.2.2)
 */
export function checkPreconditions(headers: IncomingHttpHeaders, etag: string) {
  if (isExcluded(headers['if-match'], etag) || isNamed(headers['if-none-match'], etag))
    throw preconditionFailed();
}

// The strong comparison: a weak tag never equals a strong one, its `W/` is part of what is compared.
function isExcluded(ifMatch: string | undefined, etag: string) {
  return ifMatch !== undefined && ifMatch.trim() !== '*' && !tagsIn(ifMatch).includes(etag);
}

// The weak comparison.
function isNamed(ifNoneMatch: string | undefined, etag: string) {
  return (
    ifNoneMatch !== undefined &&
    (ifNoneMatch.trim() === '*' || tagsIn(ifNoneMatch.replaceAll('W/"', '"')).includes(etag))
  );
}

function tagsIn(list: string): string[] {
  return list.match(/(?:W\/)?"[^"]*"/g) ?? [];
}

function preconditionFailed() {
  return new Problem(412, 'precondition_failed', { detail: 'It was changed since.' });
}
