/** A request to api and its response. */
export interface Exchange {
  method: string;
  path: string;
  startedAt: Date;
  /** Measured by the browser, up to the end of the response body. */
  durationMs: number;
  /** 0 if there was no response. */
  status: number;
  requestId: string;
  headers: Headers;
  body: string;
  /** The durations of `Server-Timing` in milliseconds, by name. */
  timings: ReadonlyMap<string, number>;
  failure: Failure | undefined;
}

export interface Failure {
  /** The component that failed: `api`, `api2`, `external`, or `browser` if it could not reach api. */
  component: string;
  /** An error type of RFC 9209, a problem code of api, or the status that was received. */
  type: string;
}

export interface RequestOptions {
  body?: object;
  headers?: Record<string, string>;
}

/** Sends a request to api and shows the result. */
export type Send = (method: string, path: string, options?: RequestOptions) => Promise<Exchange>;

/** Ways to send a request. Each adds an entry to the history; they differ in where else it is shown. */
export interface Senders {
  /** Shows the request in the diagram and its response as the last response. */
  sendAndShow: Send;
  /** Shows the request in the diagram. */
  sendWithDiagram: Send;
  /** Shows the request in the history only, because it is a step of an action that is already shown. */
  sendLogged: Send;
}

const TIMEOUT_MS = 20_000;

/** Sends a request to api and waits for the complete response. Never rejects. */
export async function send(
  method: string,
  path: string,
  { body, headers = {} }: RequestOptions = {},
): Promise<Exchange> {
  const startedAt = new Date();
  const startedMs = performance.now();
  const request = { method, path, startedAt };
  try {
    const response = await fetch(path, {
      method,
      headers: { ...(body && { 'content-type': 'application/json' }), ...headers },
      ...(body && { body: JSON.stringify(body) }),
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await response.text();
    const durationMs = performance.now() - startedMs;
    return { ...request, durationMs, ...parseResponse(response, text) };
  } catch {
    return { ...request, durationMs: performance.now() - startedMs, ...noResponse() };
  }
}

/** The response body as JSON; undefined if it is not JSON. */
export function jsonOf<Result>({ body }: Exchange): Result | undefined {
  try {
    return JSON.parse(body) as Result;
  } catch {
    return undefined;
  }
}

function parseResponse({ status, headers }: Response, body: string) {
  return {
    status,
    headers,
    body,
    requestId: headers.get('x-request-id') ?? '',
    timings: parseServerTiming(headers.get('server-timing') ?? ''),
    failure: failureOf(status, headers.get('proxy-status') ?? '', body),
  };
}

function noResponse() {
  const failure = { component: 'browser', type: 'unreachable' };
  return { status: 0, headers: new Headers(), body: '', requestId: '', timings: new Map(), failure };
}

function parseServerTiming(header: string): Map<string, number> {
  const metrics = header.matchAll(/([\w-]+);dur=([\d.]+)/g);
  return new Map([...metrics].map(([, name, ms]) => [String(name), Number(ms)]));
}

function failureOf(status: number, proxyStatus: string, body: string): Failure | undefined {
  const parameters = new Map(
    [...proxyStatus.matchAll(/;\s*([\w-]+)=([\w-]+)/g)].map(([, name, value]) => [name, String(value)]),
  );
  const received = parameters.get('received-status');
  const type = parameters.get('error') ?? (received && `received ${received}`);
  if (type !== undefined) return { component: parameters.get('next-hop') ?? 'api', type };
  if (status < 500) return undefined;
  // Without Proxy-Status, a 503 comes from api2 itself and any other 5xx from api.
  return { component: status === 503 ? 'api2' : 'api', type: problemCodeOf(body) };
}

function problemCodeOf(body: string) {
  return /"code":"(\w+)"/.exec(body)?.[1] ?? 'internal_error';
}
