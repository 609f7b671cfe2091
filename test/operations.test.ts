import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'undici';
import { type Program, start } from './programs';
import { httpUpstream } from './stub-upstream';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function startProgram(service: 'api' | 'api2', env = {}): Promise<Program> {
  const program = await start(service, env);
  cleanups.push(async () => program.child.exitCode ?? program.stop('SIGKILL'));
  return program;
}

async function call(url: string, options: Parameters<typeof request>[1] = {}) {
  const { statusCode, body, headers } = await request(url, options);
  return { status: statusCode, text: await body.text(), headers };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const fetchMetrics = async ({ adminUrl }: Program) => (await call(`${adminUrl}/metrics`)).text;
describe('metrics', () => {
  test('counts 90 successes, 10 failures and 500 unknown paths without a new series per path', async () => {
    let requests = 0;
    const upstream = await httpUpstream(
      (_req, res) => void res.writeHead(++requests % 10 === 0 ? 503 : 200).end('ok'),
    );
    cleanups.push(() => upstream.close());
    const api = await startProgram('api', { API2_URL: upstream.origin });
    for (let i = 0; i < 100; i++) await call(`${api.url}/hello`);
    await call(`${api.url}/one`);
    const before = await fetchMetrics(api);
    for (let i = 0; i < 499; i++) await call(`${api.url}/nothing/${Math.random()}`);
    const after = await fetchMetrics(api);
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
      'http_client_addresses{next_hop="api2"} 1',
      'http_client_ejected_addresses{next_hop="api2"} 0',
      'http_client_hedges_won_total{next_hop="api2"} 0',
      'http_client_retry_budget_exhausted_total{next_hop="api2"} 0',
    ])
      expect(after.split('\n')).toContain(line);
    expect(after).toMatch(/^process_cpu_seconds_total /m);
    const series = (text: string) => text.split('\n').filter((line) => line.startsWith('http_')).length;
    expect(series(after)).toBe(series(before));
  });

  test('counts failures by error type and retries by kind, and reports the open circuit as 2', async () => {
    const api = await startProgram('api', { API2_URL: 'http://127.0.0.1:9' });
    for (let i = 0; i < 20; i++) await call(`${api.url}/hello`);
    const text = await fetchMetrics(api);
    expect(text).toMatch(/_count\{next_hop="api2",status="",error="connection_refused"\} 16$/m);
    expect(text).toMatch(/_count\{next_hop="api2",status="",error="destination_unavailable"\} 4$/m);
    expect(text).toMatch(/^http_client_retries_total\{next_hop="api2",kind="retry"\} 1[0-2]$/m);
    expect(text).toMatch(/^http_client_circuit_state\{next_hop="api2"\} 2$/m);
    expect(text).toMatch(/^http_client_ejected_addresses\{next_hop="api2"\} 1$/m);
  });

  test('counts a hedge as won only if its response was used', async () => {
    let requests = 0;
    // The first exchange ends with the response of its hedge, the second one with that of its first attempt.
    const delaysMs = [5000, 0, 300, 5000];
    const upstream = await httpUpstream(
      (_req, res) => void setTimeout(() => res.end('ok'), delaysMs[requests++]).unref(),
    );
    cleanups.push(() => upstream.close());
    const api = await startProgram('api', { API2_URL: upstream.origin, API2_TIMEOUT_MS: '1000' });
    for (let i = 0; i < 2; i++) expect((await call(`${api.url}/hello`)).status).toBe(200);
    const text = await fetchMetrics(api);
    expect(text).toMatch(/^http_client_retries_total\{next_hop="api2",kind="hedge"\} 2$/m);
    expect(text).toMatch(/^http_client_hedges_won_total\{next_hop="api2"\} 1$/m);
  });

  test('uncommon methods share the label _OTHER', async () => {
    const api = await startProgram('api', { API2_URL: 'http://127.0.0.1:9' });
    for (const method of ['PROPFIND', 'LOCK', 'MKCOL']) await call(`${api.url}/hello`, { method });
    expect(await fetchMetrics(api)).toMatch(/_count\{method="_OTHER",route="\/hello",status="405"\} /);
  });

  test('the service port does not serve the paths of the admin port', async () => {
    const api = await startProgram('api');
    for (const path of ['/metrics', '/livez', '/readyz', '/fault'])
      expect((await call(api.url + path)).status).toBe(404);
  });
});

describe('logs', () => {
  test('each request logs one line with the fields of the hop, and no credential, cookie, query or body', async () => {
    const api2 = await startProgram('api2', { GREETING: 'body-secret' });
    const api = await startProgram('api', { API2_URL: api2.url });
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
  ])('an invalid traceparent %s is not forwarded, nor is its tracestate', async (traceparent) => {
    let seen: unknown;
    const upstream = await httpUpstream((req, res) => {
      seen = req.headers;
      res.end();
    });
    cleanups.push(() => upstream.close());
    const api = await startProgram('api', { API2_URL: upstream.origin });
    await call(`${api.url}/hello`, { headers: { traceparent, tracestate: 'a=1', baggage: 'b=2' } });
    expect(seen).toMatchObject({ baggage: 'b=2' });
    expect(seen).not.toHaveProperty('traceparent');
    expect(seen).not.toHaveProperty('tracestate');
    expect(api.output()).not.toContain('traceId');
  });

  test('Server-Timing has the duration of the hop to api2 and the total', async () => {
    const api2 = await startProgram('api2');
    const api = await startProgram('api', { API2_URL: api2.url });
    const { headers } = await call(`${api.url}/hello`);
    expect(headers['server-timing']).toMatch(/^api2;dur=\d+\.\d+, total;dur=\d+\.\d+$/);
    expect((await call(`${api.url}/nothing`)).headers['server-timing']).toMatch(/^total;dur=\d+\.\d+$/);
  });
});

describe('shutdown', () => {
  test('while draining, /readyz returns 503 and requests still succeed; then the process exits 0', async () => {
    const api2 = await startProgram('api2', { DRAIN_MS: '600' });
    const stopped = api2.stop();
    await sleep(150);
    expect((await call(`${api2.adminUrl}/readyz`)).status).toBe(503);
    expect((await call(`${api2.adminUrl}/livez`)).status).toBe(200);
    expect((await call(`${api2.url}/respond`)).status).toBe(200);
    expect(await stopped).toBe(0);
  });

  test('SIGTERM under load loses no request', async () => {
    const api2 = await startProgram('api2');
    const api = await startProgram('api', { API2_URL: api2.url, DRAIN_MS: '1500' });
    const statuses: number[] = [];
    let isStopping = false;
    const clients = Array.from({ length: 20 }, async () => {
      while (!isStopping) {
        await sleep(5);
        statuses.push((await call(`${api.url}/hello`)).status);
      }
    });
    while (statuses.length < 200) await sleep(10);
    const stopped = api.stop();
    await sleep(200);
    isStopping = true;
    await Promise.all(clients);
    expect(await stopped).toBe(0);
    expect(statuses.length).toBeGreaterThan(200);
    expect(statuses.filter((status) => status !== 200)).toEqual([]);
  });

  test('an uncaught error is logged and drains the service, which exits 1', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
    cleanups.push(async () => rmSync(folder, { recursive: true }));
    const crash = join(folder, 'crash.js');
    writeFileSync(crash, "process.on('SIGUSR1', () => Promise.reject(new Error('unforeseen')));");
    const upstream = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 300));
    cleanups.push(() => upstream.close());
    const api = await startProgram('api', { API2_URL: upstream.origin, NODE_OPTIONS: `--require=${crash}` });
    const inFlight = call(`${api.url}/hello`);
    await sleep(100);
    expect(await api.stop('SIGUSR1')).toBe(1);
    expect((await inFlight).status).toBe(200);
    expect(api.lines()).toContainEqual(
      expect.objectContaining({ level: 'fatal', err: expect.objectContaining({ message: 'unforeseen' }) }),
    );
  });
});
