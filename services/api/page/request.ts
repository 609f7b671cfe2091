import { type Attempt, parseAttempts, parseTotalMs } from './attempts.js';

/** A request to api and its response. */
export interface Exchange {
  method: string;
  path: string;
  startedAt: Date;
  /** The value of `x-fault` that was sent; empty for none. */
  fault: string;
  /** Measured by the browser, up to the end of the response body. */
  durationMs: number;
  /** 0 if there was no response. */
  status: number;
  requestId: string;
  headers: Headers;
  body: string;
  /** The attempts of api to call a next hop. */
  attempts: readonly Attempt[];
  /** The time that api took for the whole request; undefined without a response. */
  totalMs: number | undefined;
  failure: Failure | undefined;
}

export interface Failure {
  /** The component that failed: `api`, `api2`, `external`, or `browser` if it got no complete response from api. */
  component: string;
  /** An error type of RFC 9209, a problem code, or `received` and the status that the next hop sent. */
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
  const fault = path === '/data' ? '' : (document.getElementById('fault') as HTMLSelectElement).value;
  const request = { method, path, startedAt, fault };
  let response: Response | undefined;
  try {
    response = await fetch(path, {
      method,
      headers: {
        ...(body && { 'content-type': 'application/json' }),
        ...(fault && { 'x-fault': fault }),
        ...headers,
      },
      ...(body && { body: JSON.stringify(body) }),
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await response.text();
    const durationMs = performance.now() - startedMs;
    return { ...request, durationMs, ...parseResponse(response, text) };
  } catch {
    return { ...request, durationMs: performance.now() - startedMs, ...failedExchange(response) };
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
  const proxyStatus = new Map(
    [...(headers.get('proxy-status') ?? '').matchAll(/;\s*([\w-]+)=([\w-]+)/g)].map(
      ([, name, value]) => [name, String(value)] as const,
    ),
  );
  const attempts = parseAttempts(headers, proxyStatus.get('error'));
  return {
    status,
    headers,
    body,
    requestId: headers.get('x-request-id') ?? '',
    attempts,
    totalMs: parseTotalMs(headers),
    failure: failureOf(status, proxyStatus, attempts, body),
  };
}

// Without a response, api could not be reached. Otherwise, its body was cut off.
function failedExchange(response: Response | undefined) {
  if (response !== undefined)
    return { ...parseResponse(response, ''), failure: { component: 'browser', type: 'incomplete' } };
  const failure = { component: 'browser', type: 'unreachable' };
  const headers = new Headers();
  return { status: 0, headers, body: '', requestId: '', attempts: [], totalMs: undefined, failure };
}

function failureOf(
  status: number,
  proxyStatus: ReadonlyMap<string | undefined, string>,
  attempts: readonly Attempt[],
  body: string,
): Failure | undefined {
  const received = proxyStatus.get('received-status');
  const type = proxyStatus.get('error') ?? (received && `received ${received}`);
  if (type !== undefined) return { component: proxyStatus.get('next-hop') ?? 'api', type };
  if (status < 500) return undefined;
  // Without Proxy-Status, api passes on the status of a next hop that responded, and any other 5xx is its own.
  const [, code] = /"code":"(\w+)"/.exec(body) ?? [];
  return attempts.some(({ isWinner }) => isWinner)
    ? { component: 'api2', type: code ?? `received ${status}` }
    : { component: 'api', type: code ?? 'internal_error' };
}
