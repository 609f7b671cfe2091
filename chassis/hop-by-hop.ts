import type { IncomingHttpHeaders } from 'node:http';

/** The lower-case names that `Connection` lists: they are for this connection alone (RFC 9110, section 7.6.1). */
export function hopByHop({ connection }: IncomingHttpHeaders): readonly string[] {
  return connection === undefined ? [] : connection.toLowerCase().split(/[\s,]+/);
}
