import { randomBytes } from 'node:crypto';

const VALID_REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/;

// A random prefix and a counter are as unique as random ids, without a system call for each.
const prefix = randomBytes(9).toString('base64url');
let count = 0;

/** Returns the client's request id if it is 1–128 characters of `A–Z a–z 0–9 . _ -`, otherwise a new one. */
export function requestIdFrom(header: string | string[] | undefined): string {
  return typeof header === 'string' && VALID_REQUEST_ID.test(header)
    ? header
    : `${prefix}-${(++count).toString(36)}`;
}
