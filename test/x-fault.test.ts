import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { request } from 'undici';
import { createTestApi, type TestNextHopOptions } from './app-under-test';
import { expectToMatchOpenApi } from './openapi';
import { type Program, programStarter, start } from './programs';
import { closedPort, httpUpstream } from './stub-upstream';

const TIMEOUT_MS = 2000;
/** If each attempt had its own deadline, a hedged request could take 1.25 times the timeout. */
const MAX_MS = TIMEOUT_MS * 1.24;
const startProgram = programStarter();
const cleanups: (() => unknown)[] = [];
let api2: Program;
let api: Program;
// Retries of the tests of /hello would use up the retry budget of those of /books.
let booksApi: Program;

beforeAll(async () => {
  api2 = await start('api2', { FAULTS: 'on' });
  api = await startApi(api2);
  booksApi = await startApi(api2);
});

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

afterAll(() => Promise.all([api, booksApi, api2].map((program) => program.stop('SIGKILL'))));

function startApi({ url }: Program, env = {}) {
  return start('api', { API2_URL: url, API2_TIMEOUT_MS: String(TIMEOUT_MS), FAULTS: 'on', ...env });
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean) {
  while (!condition()) await sleep(10);
}

type Options = Exclude<Parameters<typeof request>[1], undefined>;

async function call(url: string, fault?: string | string[], options: Options = {}) {
  const headers = { ...(options.headers as object), ...(fault !== undefined && { 'x-fault': fault }) };
  const startedMs = performance.now();
  const { statusCode, headers: received, body } = await request(url, { ...options, headers });
  const text = await body.text();
  const { 'server-timing': timing = '', 'x-attempts': attempts } = received;
  const ms = performance.now() - startedMs;
  return { status: statusCode, text, headers: received, timing: String(timing), attempts, ms };
}

const setFault = (fault: object) =>
  call(`${api2.adminUrl}/fault`, undefined, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(fault),
  });
const clearFault = () => call(`${api2.adminUrl}/fault`, undefined, { method: 'DELETE' });

/** Starts api in this process, with the addresses of `hosts` as the replicas of api2. */
async function startApiFor(hosts: readonly string[], port: number, options: TestNextHopOptions = {}) {
  const lookup = async () => hosts.map((address) => ({ address, family: 4 }));
  const { app, api2: client } = createTestApi(`http://api2.test:${port}`, {
    lookup,
    timeoutMs: TIMEOUT_MS,
    faults: true,
    ...options,
  });
  const server = createServer(app).listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(
    () => client.destroy(),
    () => server.close(),
  );
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const OK = '"ok"';
const CANCELLED = '"cancelled"';
const TERMINATED = '"connection_terminated"';
const TIMED_OUT = '"http_response_timeout"';

/** The value of `Server-Timing` for attempts that ended with these outcomes; a single attempt has no outcome. */
function timingOf(outcomes: readonly string[]) {
  const entries = outcomes.map((outcome, i) => `api2\\.${i + 1};dur=\\d+\\.\\d\\d;desc=${outcome}`);
  return new RegExp(
    `^${[...(entries.length ? entries : ['api2;dur=\\d+\\.\\d\\d']), 'total;dur=[\\d.]+'].join(', ')}$`,
  );
}

describe('a fault in x-fault applies to its request', () => {
  const FAILED = 'Internal error contacting api2';
  test.each<[string, number, string, string[]]>([
    ['hang', 500, FAILED, [TIMED_OUT, TIMED_OUT]],
    ['hang;attempt=1', 200, 'Hello World!', [CANCELLED, OK]],
    ['reset', 500, FAILED, [TERMINATED, TERMINATED, TERMINATED]],
    ['reset;attempt=1', 200, 'Hello World!', [TERMINATED, OK]],
    ['status', 500, 'Error from api2: 503', []],
    ['status;code=404', 500, 'Error from api2: 404', []],
    ['status;code=204', 200, '', []],
    ['delay;ms=150', 200, 'Hello World!', []],
    ['delay;ms=1000', 200, 'Hello World!', [OK, CANCELLED]],
    ['delay;attempt=1', 200, 'Hello World!', [CANCELLED, OK]],
    ['delay;ms=2500', 500, FAILED, [TIMED_OUT, TIMED_OUT]],
    ['drip;ms=20', 200, 'Hello World!', []],
    ['drip;ms=300', 500, FAILED, []],
    ['truncate', 500, FAILED, []],
    ['truncate;attempt=1', 500, FAILED, []],
  ])('/hello with %j: %i %s', async (fault, status, text, outcomes) => {
    const response = await call(`${api.url}/hello`, fault);
    expect(response).toMatchObject({ status, text });
    expect(response.timing).toMatch(timingOf(outcomes));
    expect(String(response.attempts).split(', ')).toHaveLength(Math.max(outcomes.length, 1));
    expect(response.ms).toBeLessThan(MAX_MS);
    const [, delay] = /delay;ms=(\d+)/.exec(fault) ?? [];
    if (delay !== undefined)
      expect(response.ms).toBeGreaterThanOrEqual(Math.min(Number(delay), TIMEOUT_MS) - 1);
    expectToMatchOpenApi('GET', '/hello', {
      ...response,
      headers: response.headers as Record<string, string>,
    });
    expect(await call(`${api.url}/hello`)).toMatchObject({ status: 200, text: 'Hello World!' });
  });

  test.each<[string, string, number, string[]]>([
    ['GET', 'hang', 504, [TIMED_OUT, TIMED_OUT]],
    ['GET', 'hang;attempt=1', 200, [CANCELLED, OK]],
    ['GET', 'reset', 502, [TERMINATED, TERMINATED, TERMINATED]],
    ['GET', 'reset;attempt=1', 200, [TERMINATED, OK]],
    ['GET', 'status;code=500', 500, []],
    ['GET', 'drip;ms=10', 200, []],
    ['POST', 'hang;attempt=1', 504, []],
    ['POST', 'reset;attempt=1', 502, []],
    ['POST', 'status;code=503;attempt=1', 503, []],
    ['POST', 'delay;ms=200', 201, []],
  ])('%s /books with %j: %i', async (method, fault, status, outcomes) => {
    const body = method === 'POST' ? '{"title":"a","author":"b"}' : null;
    const headers = { 'content-type': 'application/json' };
    const response = await call(`${booksApi.url}/books`, fault, { method: method as 'GET', body, headers });
    expect(response.status).toBe(status);
    expect(response.timing).toMatch(timingOf(outcomes));
    expect(response.ms).toBeLessThan(MAX_MS);
  });

  test('/books/:id with "status;code=418": 418', async () => {
    expect((await call(`${api.url}/books/1`, 'status;code=418')).status).toBe(418);
  });

  test('/books with "truncate": the response is cut off', async () => {
    await expect(call(`${api.url}/books`, 'truncate')).rejects.toThrow();
  });

  test.each(['truncate', 'drip'])(
    'DELETE /books/:id with "%s": 204 without content-length',
    async (fault) => {
      const headers = { 'content-type': 'application/json' };
      const body = '{"title":"a","author":"b"}';
      const { location } = (await call(`${api.url}/books`, undefined, { method: 'POST', headers, body }))
        .headers;
      const response = await call(`${api2.url}${location}`, fault, { method: 'DELETE' });
      expect(response.status).toBe(204);
      expect(response.headers).not.toHaveProperty('content-length');
    },
  );

  test.each(['truncate', 'drip'])('GET /books/:id with "%s": 304 without content-length', async (fault) => {
    const headers = { 'content-type': 'application/json' };
    const body = '{"title":"a","author":"b"}';
    const { location, etag } = (await call(`${api.url}/books`, undefined, { method: 'POST', headers, body }))
      .headers;
    const response = await call(`${api2.url}${location}`, fault, {
      headers: { 'if-none-match': String(etag) },
    });
    expect(response.status).toBe(304);
    expect(response.headers).not.toHaveProperty('content-length');
  });

  test.each([
    ['/respond', 'status;code=418', '/respond', 418],
    ['/books/1', 'status;code=418', '/books/:id', 418],
    ['/respond', 'reset', '/respond', 499],
  ])('the log line of api2 names the route of %s with "%s"', async (path, fault, route, status) => {
    const requestId = `${fault} ${path}`.replaceAll(/[^a-z0-9]/g, '-');
    await call(`${api2.url}${path}`, fault, { headers: { 'x-request-id': requestId } }).catch(() => {});
    const line = () => api2.lines().find((other) => other.requestId === requestId);
    await until(() => line() !== undefined);
    expect(line()).toMatchObject({ msg: 'request completed', route, status });
  });

  test('a response that is cut off is logged as an error with the status that was sent', async () => {
    await expect(call(`${booksApi.url}/books`, 'truncate')).rejects.toThrow();
    const isCutOff = ({ error }: Record<string, unknown>) => error === 'http_response_incomplete';
    await until(() => booksApi.lines().some(isCutOff));
    expect(booksApi.lines().find(isCutOff)).toMatchObject({ level: 'error', status: 200, route: '/books' });
    const { requestId } = booksApi.lines().find(isCutOff) ?? {};
    const isSame = (line: Record<string, unknown>) => line.requestId === requestId;
    await until(() => api2.lines().some(isSame));
    expect(api2.lines().find(isSame)).toMatchObject({ level: 'error', status: 200, route: '/books' });
  });

  test('HEAD /hello with "status;code=503": 500', async () => {
    expect((await call(`${api.url}/hello`, 'status;code=503', { method: 'HEAD' })).status).toBe(500);
  });

  test('a 503 of the first attempt is retried on another replica', async () => {
    await startProgram('api2', { FAULTS: 'on', HOST: '127.0.0.2', PORT: String(api2.port) });
    const url = await startApiFor(['127.0.0.1', '127.0.0.2'], api2.port, { timeoutMs: 2 * TIMEOUT_MS });
    const response = await call(`${url}/hello`, 'status;code=503;attempt=1');
    expect(response).toMatchObject({ status: 200, text: 'Hello World!' });
    expect(response.timing).toMatch(timingOf([OK, OK]));
    expect(response.attempts).toMatch(/^first;start=0\.00;replica=1, retry;start=[\d.]+;replica=2$/);
  });

  test('it takes precedence over the switch, even if only its first attempt is affected', async () => {
    await setFault({ kind: 'status', status: 500 });
    cleanups.push(clearFault);
    expect((await call(`${api.url}/hello`)).text).toBe('Error from api2: 500');
    expect((await call(`${api.url}/hello`, 'status;code=418')).text).toBe('Error from api2: 418');
    expect((await call(`${api.url}/hello`, 'reset;attempt=1')).text).toBe('Hello World!');
  });

  test('it does not end with the fault of the switch', async () => {
    const delayed = call(`${api.url}/hello`, 'delay;ms=200');
    await sleep(50);
    await setFault({ kind: 'hang' });
    await clearFault();
    const { status, ms } = await delayed;
    expect(status).toBe(200);
    expect(ms).toBeGreaterThanOrEqual(199);
  });

  test.each(['hang', 'drip;ms=60000'])(
    'stopping api2 ends "%s" first, and the process exits 0',
    async (fault) => {
      const stopped = await startProgram('api2', { FAULTS: 'on' });
      const held = call(`${stopped.url}/respond`, fault);
      await sleep(100);
      expect(await stopped.stop()).toBe(0);
      expect(await held).toMatchObject({ status: 200, text: 'Hello World!' });
    },
  );
});

describe('an invalid x-fault', () => {
  const INVALID: (string | string[])[] = [
    'boom',
    'Hang',
    '"hang"',
    'hang;seconds=5',
    'hang;attempt=2',
    'delay;ms=0',
    'delay;ms=600001',
    'delay;ms=1.5',
    'status;code=199',
    'status;code=600',
    'hang, reset',
    ['hang', 'hang'],
    ['hang', ''],
    '',
  ];

  test.each(
    INVALID.flatMap((fault) => ['/hello', '/books', '/books/1'].map((path) => [fault, path] as const)),
  )('%j is a 400 that names x-fault on %s, and api2 gets no request', async (fault, path) => {
    const isSent = (line: Record<string, unknown>) => line.msg === 'request completed';
    const before = api2.lines().filter(isSent).length;
    const response = await call(`${api.url}${path}`, fault);
    expect(response.status).toBe(400);
    expect(response.headers['content-type']).toBe('application/problem+json');
    expect(JSON.parse(response.text)).toMatchObject({
      status: 400,
      code: 'invalid_fault',
      detail: expect.stringMatching(/^x-fault: expected .*delay.*status.*reset.*hang/),
      requestId: response.headers['x-request-id'],
    });
    expect(response.timing).toMatch(/^total;dur=[\d.]+$/);
    expect(api2.lines().filter(isSent)).toHaveLength(before);
    expectToMatchOpenApi('GET', path, { ...response, headers: response.headers as Record<string, string> });
  });

  test('is a 400 on a POST before its body is read', async () => {
    const options = { method: 'POST', body: 'not JSON', headers: { 'content-type': 'text/plain' } } as const;
    expect((await call(`${api.url}/books`, 'boom', options)).status).toBe(400);
  });

  test('is a 400 of api2 when it is sent there directly', async () => {
    const response = await call(`${api2.url}/respond`, 'boom');
    expect(JSON.parse(response.text)).toMatchObject({ status: 400, code: 'invalid_fault' });
  });

  test('is ignored on a method that is not allowed, and on other routes', async () => {
    expect((await call(`${api.url}/hello`, 'boom', { method: 'DELETE' })).status).toBe(405);
    expect((await call(`${api.url}/openapi.json`, 'boom')).status).toBe(200);
  });
});

describe('without FAULTS=on', () => {
  test.each(['hang', 'status;code=418', 'boom', ''])(
    'in api, %j is neither forwarded nor validated',
    async (fault) => {
      const plain = await startApi(api2, { FAULTS: undefined });
      cleanups.push(() => plain.stop('SIGKILL'));
      const response = await call(`${plain.url}/hello`, fault);
      expect(response).toMatchObject({ status: 200, text: 'Hello World!' });
      expect(response.headers).not.toHaveProperty('x-attempts');
      expect((await call(`${plain.url}/books`, fault)).status).toBe(200);
    },
  );

  test.each(['hang', 'boom'])('in api2, %j is ignored', async (fault) => {
    const plain = await startProgram('api2');
    expect(await call(`${plain.url}/respond`, fault)).toMatchObject({ status: 200, text: 'Hello World!' });
  });
});

describe('a request with x-fault', () => {
  test('does not pass its header on to the external API', async () => {
    const seen: string[] = [];
    const external = await httpUpstream((req, res) => {
      seen.push(...Object.keys(req.headers));
      if (external.requests() === 1) return req.socket.destroy();
      res.setHeader('content-type', 'application/json').end('{}');
    });
    cleanups.push(() => external.close());
    const own = await startApi(api2, { EXTERNAL_URL: external.origin });
    cleanups.push(() => own.stop('SIGKILL'));
    const { status, timing } = await call(`${own.url}/data`, 'hang');
    expect([status, external.requests()]).toEqual([200, 2]);
    expect(timing).toMatch(/^external\.1;dur=[\d.]+;desc="connection_terminated", external\.2;dur=/);
    expect(seen).not.toContain('x-fault');
    expect(seen).not.toContain('x-attempt-count');
  });

  test('shares no exchange when COLLAPSE is on', async () => {
    const own = await startApi(api2, { COLLAPSE: 'on' });
    cleanups.push(() => own.stop('SIGKILL'));
    // The first request of a process is slow.
    await call(`${own.url}/hello`);
    const faulty = call(`${own.url}/hello`, 'delay;ms=800');
    await sleep(50);
    const other = await call(`${own.url}/hello`);
    expect(other).toMatchObject({ status: 200 });
    expect(other.ms).toBeLessThan(600);
    expect((await faulty).ms).toBeGreaterThanOrEqual(799);
    await setFault({ kind: 'delay', delayMs: 200 });
    cleanups.push(clearFault);
    const slow = call(`${own.url}/hello`);
    await sleep(50);
    expect((await call(`${own.url}/hello`, 'status;code=418')).text).toBe('Error from api2: 418');
    expect(await slow).toMatchObject({ status: 200, text: 'Hello World!' });
  });

  test('is not copied to probe an ejected replica', async () => {
    const seen: string[][] = [];
    const healthy = await httpUpstream((_req, res) => void res.end('ok'), '127.0.0.2');
    cleanups.push(() => healthy.close());
    const url = await startApiFor(['127.0.0.1', '127.0.0.2'], healthy.port);
    for (let i = 0; i < 2; i++) await call(`${url}/hello`);
    const ejected = await httpUpstream(
      (req, res) => {
        seen.push(Object.keys(req.headers));
        res.end('ok');
      },
      '127.0.0.1',
      healthy.port,
    );
    cleanups.push(() => ejected.close());
    await sleep(1100);
    for (const path of ['/hello', '/books']) await call(`${url}${path}`, 'hang');
    await sleep(50);
    expect(ejected.requests()).toBe(0);
    await call(`${url}/hello`);
    await sleep(50);
    expect(ejected.requests()).toBe(1);
    expect(seen[0]).not.toContain('x-fault');
  });
});

describe('x-attempt-count', () => {
  test.each([true, false])('is sent with repeated attempts only (FAULTS=on: %p)', async (faults) => {
    const counts: unknown[] = [];
    const hop = await httpUpstream((req, res) => {
      counts.push(req.headers['x-attempt-count']);
      if (hop.requests() < 3) req.socket.destroy();
      else res.end('ok');
    });
    cleanups.push(() => hop.close());
    const url = await startApiFor(['127.0.0.1'], hop.port, { faults });
    expect(await call(`${url}/hello`)).toMatchObject({ status: 200, text: 'ok' });
    expect(counts).toEqual([undefined, '2', '3']);
  });

  test.each(['/hello', '/books'])('of the client is not forwarded on %s', async (path) => {
    let seen: unknown;
    const hop = await httpUpstream((req, res) => {
      seen = req.headers;
      res.end('ok');
    });
    cleanups.push(() => hop.close());
    const url = await startApiFor(['127.0.0.1'], hop.port);
    await call(`${url}${path}`, 'hang;attempt=1', { headers: { 'x-attempt-count': '2' } });
    expect(seen).toMatchObject({ 'x-fault': 'hang;attempt=1' });
    expect(seen).not.toHaveProperty('x-attempt-count');
  });
});

describe('Server-Timing and x-attempts', () => {
  test('a hedge that wins after a quarter of the deadline is listed with its start', async () => {
    const { timing, attempts } = await call(`${api.url}/hello`, 'hang;attempt=1');
    const [, first, second, total] =
      /^api2\.1;dur=(.*?);.*api2\.2;dur=(.*?);.*total;dur=(.*)$/.exec(timing) ?? [];
    const [, startMs] =
      /^first;start=0\.00;replica=1, hedge;start=([\d.]+);replica=1$/.exec(String(attempts)) ?? [];
    expect(Number(startMs)).toBeGreaterThanOrEqual(TIMEOUT_MS / 4 - 1);
    expect(Number(first)).toBeGreaterThanOrEqual(Number(startMs));
    expect(Number(second)).toBeLessThan(TIMEOUT_MS / 4);
    expect(Number(total)).toBeGreaterThanOrEqual(Number(startMs));
  });

  test('with FAULTS=on, replicas are numbered, and their addresses are not revealed', async () => {
    await startProgram('api2', { HOST: '127.0.0.2', PORT: String(api2.port) });
    const url = await startApiFor(['127.0.0.1', '127.0.0.2'], api2.port);
    const responses = [];
    for (let i = 0; i < 4; i++) responses.push(await call(`${url}${i < 2 ? '/hello' : '/books'}`));
    for (const { timing } of responses) expect(timing).toMatch(timingOf([]));
    expect(responses.map(({ attempts }) => attempts)).toEqual(
      [1, 2, 1, 2].map((replica) => `first;start=0.00;replica=${replica}`),
    );
    expect(JSON.stringify(responses.map(({ headers }) => headers))).not.toContain('127.0.0');
  });

  test('without FAULTS=on, only repeated attempts are listed, without replicas', async () => {
    const hop = await httpUpstream(
      (req, res) => void (hop.requests() === 1 ? req.socket.destroy() : res.end('ok')),
    );
    cleanups.push(() => hop.close());
    const url = await startApiFor(['127.0.0.1'], hop.port, { faults: false });
    const repeated = await call(`${url}/hello`);
    expect(repeated.timing).toMatch(timingOf([TERMINATED, OK]));
    expect(repeated.attempts).toMatch(/^first;start=0\.00, retry;start=[\d.]+$/);
    const single = await call(`${url}/hello`);
    expect(single.timing).toMatch(timingOf([]));
    expect(single.headers).not.toHaveProperty('x-attempts');
  });

  test('list the attempts of a shared exchange in each response', async () => {
    const hop = await httpUpstream((_req, res) => void (hop.requests() > 1 && res.end('ok')));
    cleanups.push(() => hop.close());
    const url = await startApiFor(['127.0.0.1'], hop.port, { collapse: true });
    const responses = await Promise.all([1, 2, 3].map(() => call(`${url}/hello`)));
    expect(hop.requests()).toBe(2);
    for (const { timing, attempts } of responses) {
      expect(timing).toMatch(timingOf([CANCELLED, OK]));
      expect(attempts).toBe(responses[0]?.attempts);
    }
  });

  test('list connection attempts that are refused', async () => {
    const url = await startApiFor(['127.0.0.1'], await closedPort());
    const { status, timing } = await call(`${url}/hello`);
    expect(status).toBe(500);
    expect(timing).toMatch(timingOf(Array(3).fill('"connection_refused"')));
  });
});
