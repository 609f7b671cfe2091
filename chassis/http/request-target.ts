import type { Request } from 'express';

/** Returns the unmodified query of a request with its `?`, or an empty string. */
export function queryOf({ originalUrl }: Request): string {
  const start = originalUrl.indexOf('?');
  return start < 0 ? '' : originalUrl.slice(start);
}
