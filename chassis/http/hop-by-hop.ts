import type { IncomingHttpHeaders } from 'node:http';

/** Returns the lower-case header names that `Connection` lists. They must not be forwarded (RFC 9110, section 7.6.1). */
export function hopByHopHeaders({ connection }: IncomingHttpHeaders): readonly string[] {
  return connection === undefined ? [] : connection.toLowerCase().split(/[\s,]+/);
}
