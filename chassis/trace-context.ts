import type { IncomingHttpHeaders } from 'node:http';

const TRACEPARENT = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$/;

/**
 * The trace id of a valid `traceparent`, else undefined
 * (https://www.w3.org/TR/trace-context/#traceparent-header: only versions after 00 may be longer).
 */
export function traceIdOf({ traceparent }: IncomingHttpHeaders): string | undefined {
  const match = typeof traceparent === 'string' ? TRACEPARENT.exec(traceparent) : null;
  if (match === null || (match[1] === '00' && match[3] !== undefined)) return undefined;
  return match[2];
}
