/** One request to api, and what came of it. */
export interface Outcome {
  method: string;
  path: string;
  at: Date;
  /** By the page's own clock, body included. */
  ms: number;
  /** 0 where there was no answer at all. */
  status: number;
  requestId: string;
  headers: Headers;
  text: string;
  /** Milliseconds of `Server-Timing`, by name. */
  timings: ReadonlyMap<string, number>;
  failure: Failure | undefined;
}

/** What failed on the way. */
export interface Failure {
  /** `api`, `api2`, `external`; `browser` where api could not be reached. */
  at: string;
  /** An error type of RFC 9209, a plain word of api, or a status that was received. */
  type: string;
}

export interface Options {
  body?: object;
  headers?: Record<string, string>;
}

/** Asks api, and shows what came of it. */
export type Act = (method: string, path: string, options?: Options) => Promise<Outcome>;

/** Ways to send a request. Each one adds a line to the history; they differ in what else shows it. */
export interface Senders {
  /** Shows the request in the diagram and its response as the answer. */
  act: Act;
  /** Shows the request in the diagram. */
  follow: Act;
  /** Shows the request in the history only, because it is a step of an action that is shown already. */
  record: Act;
}

const LONGEST_MS = 20_000;

/** Asks api, and waits for the whole answer. Never rejects. */
export async function ask(
  method: string,
  path: string,
  { body, headers = {} }: Options = {},
): Promise<Outcome> {
  const at = new Date();
  const startedMs = performance.now();
  const begun = { method, path, at };
  try {
    const response = await fetch(path, {
      method,
      headers: { ...(body && { 'content-type': 'application/json' }), ...headers },
      ...(body && { body: JSON.stringify(body) }),
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.timeout(LONGEST_MS),
    });
    const text = await response.text();
    const ms = performance.now() - startedMs;
    return { ...begun, ms, ...told(response, text) };
  } catch {
    const ms = performance.now() - startedMs;
    const failure = { at: 'browser', type: 'unreachable' };
    return {
      ...begun,
      ms,
      status: 0,
      requestId: '',
      headers: new Headers(),
      text: '',
      timings: new Map(),
      failure,
    };
  }
}

/** The JSON of an answer; undefined where it is none. */
export function jsonOf<Result>({ text }: Outcome): Result | undefined {
  try {
    return JSON.parse(text) as Result;
  } catch {
    return undefined;
  }
}

function told(response: Response, text: string) {
  const { status, headers } = response;
  return {
    status,
    headers,
    text,
    requestId: headers.get('x-request-id') ?? '',
    timings: timingsOf(headers.get('server-timing') ?? ''),
    failure: failureOf(status, headers.get('proxy-status') ?? '', text),
  };
}

function timingsOf(header: string): Map<string, number> {
  const found = header.matchAll(/([\w-]+);dur=([\d.]+)/g);
  return new Map([...found].map(([, name, ms]) => [String(name), Number(ms)]));
}

function failureOf(status: number, proxyStatus: string, text: string): Failure | undefined {
  const parameters = new Map(
    [...proxyStatus.matchAll(/;\s*([\w-]+)=([\w-]+)/g)].map(([, name, value]) => [name, String(value)]),
  );
  const received = parameters.get('received-status');
  const type = parameters.get('error') ?? (received && `received ${received}`);
  if (type !== undefined) return { at: parameters.get('next-hop') ?? 'api', type };
  // Without Proxy-Status, it is the one that answers that fails: api, or api2 behind it.
  return status >= 500 ? { at: status === 503 ? 'api2' : 'api', type: codeOf(text) } : undefined;
}

function codeOf(text: string) {
  return /"code":"(\w+)"/.exec(text)?.[1] ?? 'internal_error';
}
