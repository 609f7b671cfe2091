import type { Dispatcher } from 'undici';

/** Returns a copy of a request with additional headers, given as alternating names and values. */
export function withHeaders<Request extends Dispatcher.DispatchOptions>(
  request: Request,
  added: readonly string[],
) {
  return { ...request, headers: [...flatHeaders(request.headers), ...added] as string[] };
}

/** Whether headers are an iterable that may be read only once, so that attempts cannot share it. */
export function isOneShot(headers: Dispatcher.DispatchOptions['headers']) {
  return (
    typeof headers === 'object' && headers !== null && !Array.isArray(headers) && Symbol.iterator in headers
  );
}

// undici accepts headers as a flat array, an object, or an iterable of pairs, and validates the values.
function flatHeaders(headers: Dispatcher.DispatchOptions['headers']): readonly unknown[] {
  if (headers === null || headers === undefined) return [];
  if (Array.isArray(headers)) return headers;
  const pairs: unknown[] =
    typeof headers === 'object' && Symbol.iterator in headers ? [...headers] : Object.entries(headers);
  return pairs.flat();
}
