import type { Request } from 'express';

/** The query of a request as it came, with its `?`; empty where there is none. */
export function queryOf({ originalUrl }: Request): string {
  const begins = originalUrl.indexOf('?');
  return begins < 0 ? '' : originalUrl.slice(begins);
}
