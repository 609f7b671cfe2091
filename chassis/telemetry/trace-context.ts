const TRACEPARENT =
  /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/**
 * Parses a `traceparent` header; returns undefined if it is invalid. Only versions after 00 may be longer
 * (https://www.w3.org/TR/trace-context/#traceparent-header).
 */
export function parseTraceparent(traceparent: string | string[] | undefined) {
  const match = typeof traceparent === 'string' ? TRACEPARENT.exec(traceparent) : null;
  if (match === null) return undefined;
  const [, version, traceId, spanId, flags, rest] = match;
  if (version === '00' && rest !== undefined) return undefined;
  return {
    traceId: String(traceId),
    spanId: String(spanId),
    traceFlags: Number.parseInt(String(flags), 16) & 1,
  };
}
