import { randomBytes } from 'node:crypto';

const ACCEPTABLE = /^[A-Za-z0-9._-]{1,128}$/;

// Random per process and counted from there: unique like a random id, without asking the kernel for each.
const prefix = randomBytes(9).toString('base64url');
let count = 0;

/** The client's request id where it is 1–128 characters of `A–Z a–z 0–9 . _ -`, else a new one. */
export function requestIdFrom(given: string | string[] | undefined): string {
  return typeof given === 'string' && ACCEPTABLE.test(given) ? given : `${prefix}-${(++count).toString(36)}`;
}
