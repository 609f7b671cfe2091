import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'undici';
import { type Program, start } from './programs';
import { httpHop } from './stub-hop';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function started(service: 'api' | 'api2', env = {}): Promise<Program> {
  const program = await start(service, env);
  cleanups.push(async () => program.child.exitCode ?? program.stop('SIGKILL'));
  return program;
}

async function call(url: string, options: Parameters<typeof request>[1] = {}) {
  const { statusCode, body, headers } = await request(url, options);
  return { status: statusCode, text: await body.text(), headers };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const metrics = async ({ adminUrl }: Program) => (await call(`${adminUrl}/metrics`)).text;
const put = (
  { adminUrl }: Program,
  fault: unknown,
  headers: object = { 'content-type': 'application/json' },
) =>
  call(`${adminUrl}/fault`, {
    method: 'PUT',
    headers: headers as Record<string, string>,
    body: typeof fault === 'string' ? fault : JSON.stringify(fault),
  });

describe('metrics', () => {
  test('100 requests of which 10 fail, and 500 unknown paths, are counted under few labels', async () => {
    let requests = 0;
    const hop = await httpHop((_req, res) => void res.writeHead(++requests % 10 === 0 ? 503 : 200).end('ok'));
    cleanups.push(() => hop.close());
    const api = await started('api', { API2_URL: hop.origin });
    for (let i = 0; i < 100; i++) await call(`${api.url}/hello`);
    await call(`${api.url}/one`);
    const before = await metrics(api);
    for (let i = 0; i < 499; i++) await call(`${api.url}/nothing/${Math.random()}`);
    const after = await metrics(api);
    for (const line of [
      'http_server_request_duration_seconds_count{method="GET",route="/hello",status="200"} 90',
      'http_server_request_duration_seconds_count{method="GET",route="/hello",status="500"} 10',
      'http_server_request_duration_seconds_count{method="GET",route="unmatched",status="404"} 500',
      'http_client_request_duration_seconds_count{next_hop="api2",status="200",error=""} 90',
      'http_client_request_duration_seconds_count{next_hop="api2",status="503",error=""} 10',
      'http_client_retries_total{next_hop="api2",kind="retry"} 0',
      'http_client_retries_total{next_hop="api2",kind="hedge"} 0',
      'http_server_requests_in_flight 0',
      'http_client_circuit_state{next_hop="api2"} 0',
      'http_client_connections{next_hop="api2"} 1',
    ])
      expect(after.split('\n')).toContain(line);
    expect(after).toMatch(/^process_cpu_seconds_total /m);
    const series = (text: string) => text.split('\n').filter((line) => line.startsWith('http_')).length;
    expect(series(after)).toBe(series(before));
  });

  test('failures are counted by their type, retries by their kind, the open circuit by 2', async () => {
    const api = await started('api', { API2_URL: 'http://127.0.0.1:9' });
    for (let i = 0; i < 20; i++) await call(`${api.url}/hello`);
    const text = await metrics(api);
    expect(text).toMatch(/_count\{next_hop="api2",status="",error="connection_refused"\} 16$/m);
    expect(text).toMatch(/_count\{next_hop="api2",status="",error="destination_unavailable"\} 4$/m);
    expect(text).toMatch(/^http_client_retries_total\{next_hop="api2",kind="retry"\} 1[0-2]$/m);
    expect(text).toMatch(/^http_client_circuit_state\{next_hop="api2"\} 2$/m);
  });

  test('odd methods share a label', async () => {
    const api = await started('api', { API2_URL: 'http://127.0.0.1:9' });
    for (const method of ['PROPFIND', 'LOCK', 'MKCOL']) await call(`${api.url}/hello`, { method });
    expect(await metrics(api)).toMatch(/_count\{method="_OTHER",route="\/hello",status="405"\} /);
  });

  test('they are not on the service port', async () => {
    const api = await started('api');
    for (const path of ['/metrics', '/livez', '/readyz', '/fault'])
      expect((await call(api.url + path)).status).toBe(404);
  });
});

describe('logs', () => {
  test('one line per request, with the fields of the hop, and no credential, cookie or body', async () => {
    const api2 = await started('api2', { GREETING: 'body-secret' });
    const api = await started('api', { API2_URL: api2.url });
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const headers = {
      'x-request-id': 'r-1',
      traceparent,
      cookie: 'a=cookie-secret',
      authorization: 'Bearer auth-secret',
    };
    await call(`${api.url}/hello?q=query-secret`, { headers });
    await api.stop();
    await api2.stop();
    const lines = [api, api2].map(({ lines }) => lines().filter(({ msg }) => msg === 'request completed'));
    expect(lines).toEqual([
      [
        {
          level: 'info',
          time: expect.any(String),
          service: 'api',
          requestId: 'r-1',
          traceId: '0af7651916cd43dd8448eb211c80319c',
          method: 'GET',
          route: '/hello',
          status: 200,
          durationMs: expect.any(Number),
          nextHopMs: expect.any(Number),
          nextHopStatus: 200,
          nextHop: 'api2',
          nextHopBytes: 11,
          msg: 'request completed',
        },
      ],
      [
        expect.objectContaining({
          service: 'api2',
          requestId: 'r-1',
          route: '/respond',
          traceId: traceparent.slice(3, 35),
        }),
      ],
    ]);
    expect(api.output() + api2.output()).not.toMatch(/secret/);
  });

  test.each([
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331',
    '00-00000000000000000000000000000000-b7ad6b7169203331-01',
    '00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01',
    'ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    '00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01',
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more',
  ])('the malformed traceparent %s does not go on, nor its tracestate', async (traceparent) => {
    let seen: unknown;
    const hop = await httpHop((req, res) => {
      seen = req.headers;
      res.end();
    });
    cleanups.push(() => hop.close());
    const api = await started('api', { API2_URL: hop.origin });
    await call(`${api.url}/hello`, { headers: { traceparent, tracestate: 'a=1', baggage: 'b=2' } });
    expect(seen).toMatchObject({ baggage: 'b=2' });
    expect(seen).not.toHaveProperty('traceparent');
    expect(seen).not.toHaveProperty('tracestate');
    expect(api.output()).not.toContain('traceId');
  });

  test('Server-Timing tells how long api2 took, and the whole', async () => {
    const api2 = await started('api2');
    const api = await started('api', { API2_URL: api2.url });
    const { headers } = await call(`${api.url}/hello`);
    expect(headers['server-timing']).toMatch(/^api2;dur=\d+\.\d+, total;dur=\d+\.\d+$/);
    expect((await call(`${api.url}/nothing`)).headers['server-timing']).toMatch(/^total;dur=\d+\.\d+$/);
  });
});

describe('stopping', () => {
  test('while it drains, /readyz is 503 and requests are still answered; then it exits 0', async () => {
    const api2 = await started('api2', { DRAIN_MS: '600' });
    const stopped = api2.stop();
    await sleep(150);
    expect((await call(`${api2.adminUrl}/readyz`)).status).toBe(503);
    expect((await call(`${api2.adminUrl}/livez`)).status).toBe(200);
    expect((await call(`${api2.url}/respond`)).status).toBe(200);
    expect(await stopped).toBe(0);
  });

  test('SIGTERM under load loses no request', async () => {
    const api2 = await started('api2');
    const api = await started('api', { API2_URL: api2.url, DRAIN_MS: '300' });
    const statuses: number[] = [];
    let stopping = false;
    const clients = Array.from({ length: 20 }, async () => {
      while (!stopping) {
        await sleep(5);
        statuses.push((await call(`${api.url}/hello`)).status);
      }
    });
    await sleep(300);
    const stopped = api.stop();
    await sleep(200);
    stopping = true;
    await Promise.all(clients);
    expect(await stopped).toBe(0);
    expect(statuses.length).toBeGreaterThan(200);
    expect(statuses.filter((status) => status !== 200)).toEqual([]);
  });

  test('an error that nobody caught is logged, drains the same way, and ends with code 1', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
    cleanups.push(async () => rmSync(folder, { recursive: true }));
    const crash = join(folder, 'crash.js');
    writeFileSync(crash, "process.on('SIGUSR1', () => Promise.reject(new Error('unforeseen')));");
    const hop = await httpHop((_req, res) => void setTimeout(() => res.end('slow'), 300));
    cleanups.push(() => hop.close());
    const api = await started('api', { API2_URL: hop.origin, NODE_OPTIONS: `--require=${crash}` });
    const inFlight = call(`${api.url}/hello`);
    await sleep(100);
    expect(await api.stop('SIGUSR1')).toBe(1);
    expect((await inFlight).status).toBe(200);
    expect(api.lines()).toContainEqual(
      expect.objectContaining({ level: 'fatal', err: expect.objectContaining({ message: 'unforeseen' }) }),
    );
  });
});

describe('faults on purpose', () => {
  test.each<[object, number, string]>([
    [{ kind: 'delay', delayMs: 300 }, 200, 'Hello World!'],
    [{ kind: 'status' }, 500, 'Error from api2: 503'],
    [{ kind: 'status', status: 404 }, 500, 'Error from api2: 404'],
    [{ kind: 'reset' }, 500, 'Internal error contacting api2'],
    [{ kind: 'truncate' }, 500, 'Internal error contacting api2'],
    [{ kind: 'drip', delayMs: 200 }, 500, 'Internal error contacting api2'],
    [{ kind: 'hang' }, 500, 'Internal error contacting api2'],
  ])('%j gives its outcome at /hello, and is gone when it is deleted', async (fault, status, text) => {
    const api2 = await started('api2', { FAULTS: 'on' });
    const api = await started('api', { API2_URL: api2.url, API2_TIMEOUT_MS: '1000' });
    expect((await put(api2, fault)).status).toBe(200);
    expect(await call(`${api.url}/hello`)).toMatchObject({ status, text });
    expect((await call(`${api2.adminUrl}/readyz`)).status).toBe(200);
    expect((await call(`${api2.adminUrl}/fault`, { method: 'DELETE' })).status).toBe(204);
    expect((await call(`${api2.adminUrl}/fault`)).text).toBe('{}');
    expect(await call(`${api.url}/hello`)).toMatchObject({ status: 200, text: 'Hello World!' });
  });

  test('what is not told is filled in, and the fault stands until its seconds have passed', async () => {
    const api2 = await started('api2', { FAULTS: 'on' });
    expect(JSON.parse((await put(api2, { kind: 'delay' })).text)).toEqual({
      kind: 'delay',
      rate: 1,
      delayMs: 1000,
      seconds: 60,
    });
    expect(JSON.parse((await put(api2, { kind: 'drip' })).text)).toMatchObject({ delayMs: 100 });
    expect(JSON.parse((await put(api2, { kind: 'status', seconds: 0.2 })).text)).toMatchObject({
      status: 503,
    });
    expect((await call(`${api2.url}/respond`)).status).toBe(503);
    await sleep(250);
    expect((await call(`${api2.adminUrl}/fault`)).text).toBe('{}');
    expect((await call(`${api2.url}/respond`)).status).toBe(200);
  });

  test('a rate of a half hits about half of the requests', async () => {
    const api2 = await started('api2', { FAULTS: 'on' });
    await put(api2, { kind: 'status', rate: 0.5 });
    let hit = 0;
    for (let i = 0; i < 200; i++) hit += Number((await call(`${api2.url}/respond`)).status === 503);
    expect(hit).toBeGreaterThan(60);
    expect(hit).toBeLessThan(140);
  });

  test.each<[string, unknown, number, object?]>([
    ['no kind', {}, 422],
    ['an unknown kind', { kind: 'boom' }, 422],
    ['a rate above 1', { kind: 'hang', rate: 1.1 }, 422],
    ['more than 600 seconds', { kind: 'hang', seconds: 601 }, 422],
    ['an informational status', { kind: 'status', status: 103 }, 422],
    ['an unknown field', { kind: 'hang', speed: 1 }, 422],
    ['null', 'null', 422],
    ['no JSON', '{', 400],
    ['another media type', { kind: 'hang' }, 415, { 'content-type': 'text/plain' }],
    [
      'a content coding',
      { kind: 'hang' },
      415,
      { 'content-type': 'application/json', 'content-encoding': 'gzip' },
    ],
    ['a body over 100 kB', `{"kind":"${'x'.repeat(101_000)}"}`, 413],
  ])(
    'a fault with %s is refused and changes nothing',
    async (_what, fault, status, headers = { 'content-type': 'application/json' }) => {
      const api2 = await started('api2', { FAULTS: 'on' });
      await put(api2, { kind: 'status', status: 418 });
      const refused = await put(api2, fault, headers);
      expect(refused.status).toBe(status);
      expect(refused.headers['content-type']).toBe('application/problem+json');
      expect(JSON.parse(refused.text)).toMatchObject({ status, code: expect.any(String) });
      expect(JSON.parse((await call(`${api2.adminUrl}/fault`)).text)).toMatchObject({
        kind: 'status',
        status: 418,
      });
    },
  );

  test('without FAULTS=on there is no switch', async () => {
    const api2 = await started('api2');
    expect((await put(api2, { kind: 'hang' })).status).toBe(404);
    expect((await call(`${api2.url}/respond`)).status).toBe(200);
  });

  test('stopping ends the fault first: what it held up is answered, and the exit code is 0', async () => {
    const api2 = await started('api2', { FAULTS: 'on' });
    await put(api2, { kind: 'hang' });
    const held = call(`${api2.url}/respond`);
    await sleep(100);
    expect(await api2.stop()).toBe(0);
    expect(await held).toMatchObject({ status: 200, text: 'Hello World!' });
  });
});
