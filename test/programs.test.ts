import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import { type Program, runToEnd, start } from './programs';
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

async function get(url: string, headers = {}) {
  const { statusCode, body, headers: got } = await request(url, { headers });
  return { status: statusCode, text: await body.text(), headers: got };
}

/** The `NODE_OPTIONS` with which a program runs `script` first. */
function preload(script: string) {
  const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
  cleanups.push(async () => rmSync(folder, { recursive: true }));
  const file = join(folder, 'preload.js');
  writeFileSync(file, script);
  return `--require=${file}`;
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test('api and api2 together say hello, with one request id in both logs', async () => {
  const api2 = await started('api2', { GREETING: 'Grüß Gott' });
  const api = await started('api', { API2_URL: api2.url });
  const answer = await get(`${api.url}/hello`, { 'x-request-id': 'hop-1' });
  expect(answer).toMatchObject({ status: 200, text: 'Grüß Gott', headers: { 'x-request-id': 'hop-1' } });
  expect(await api.stop()).toBe(0);
  expect(await api2.stop()).toBe(0);
  for (const { lines } of [api, api2])
    expect(lines().filter(({ msg }) => msg === 'request completed')).toMatchObject([
      { requestId: 'hop-1', status: 200 },
    ]);
});

test('api answers while api2 is away, and again when it is back, without a restart', async () => {
  const api2 = await started('api2');
  const api = await started('api', { API2_URL: api2.url });
  expect((await get(`${api.url}/hello`)).status).toBe(200);
  await api2.stop();
  const startedMs = performance.now();
  expect(await get(`${api.url}/hello`)).toMatchObject({
    status: 500,
    text: 'Internal error contacting api2',
  });
  expect(performance.now() - startedMs).toBeLessThan(2000);
  await started('api2', { PORT: String(api2.port) });
  expect(await get(`${api.url}/hello`)).toMatchObject({ status: 200, text: 'Hello World!' });
});

test('while the host of API2_URL is unknown, api uses API2_FALLBACK_HOST and logs it once', async () => {
  const api2 = await started('api2');
  // A label of 64 characters is invalid, so the lookup fails immediately, without a DNS server.
  const unknownHost = `${'x'.repeat(64)}.test`;
  const env = { API2_URL: `http://${unknownHost}:${api2.port}`, API2_FALLBACK_HOST: '127.0.0.1' };
  const api = await started('api', env);
  for (let i = 0; i < 5; i++) expect((await get(`${api.url}/hello`)).status).toBe(200);
  await api.stop();
  expect(api.lines().filter(({ msg }) => msg === 'fallback state changed')).toMatchObject([
    { level: 'warn', nextHop: 'api2', fallback: { host: '127.0.0.1', port: api2.port }, inUse: true },
  ]);
});

test('api2 answers /respond, and other methods and paths with problems', async () => {
  const api2 = await started('api2');
  expect(await get(`${api2.url}/respond`)).toMatchObject({
    status: 200,
    text: 'Hello World!',
    headers: { 'content-type': 'text/plain; charset=utf-8' },
  });
  const posted = await request(`${api2.url}/respond`, { method: 'POST' });
  expect(posted).toMatchObject({ statusCode: 405, headers: { allow: 'GET, HEAD' } });
  await posted.body.dump();
  expect((await get(`${api2.url}/hello`)).status).toBe(404);
});

test('every response with a body on a service port has X-Content-Type-Options: nosniff', async () => {
  const hop = await httpHop((_req, res) => void res.setHeader('content-type', 'application/json').end('{}'));
  cleanups.push(() => hop.close());
  const api2 = await started('api2');
  const api = await started('api', { API2_URL: api2.url, EXTERNAL_URL: `${hop.origin}/` });
  const urls = ['/hello', '/data', '/books', '/books/x', '/nothing', '/', '/page.js', '/openapi.json']
    .map((path) => api.url + path)
    .concat(['/respond', '/books', '/nothing'].map((path) => api2.url + path));
  for (const url of urls) {
    const { headers } = await get(url);
    expect([url, headers['x-content-type-options']]).toEqual([url, 'nosniff']);
  }
});

test.each(['SIGTERM', 'SIGINT'] as const)('%s finishes what is in flight, and exits 0', async (signal) => {
  const hop = await httpHop((_req, res) => void setTimeout(() => res.end('slow'), 400));
  cleanups.push(() => hop.close());
  const api = await started('api', { API2_URL: hop.origin });
  const inFlight = get(`${api.url}/hello`);
  const idle = new Agent({ keepAliveTimeout: 60_000 });
  await (await idle.request({ origin: api.url, path: '/x', method: 'GET' })).body.dump();
  await sleep(100);
  const stopped = api.stop(signal);
  await sleep(50);
  await expect(get(`${api.url}/hello`)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  expect(await inFlight).toMatchObject({ status: 200, text: 'slow', headers: { connection: 'close' } });
  expect(await stopped).toBe(0);
  await idle.destroy();
});

test('a request that never ends makes it exit 1 at SHUTDOWN_TIMEOUT_MS', async () => {
  const hop = await httpHop(() => {});
  cleanups.push(() => hop.close());
  const api = await started('api', {
    API2_URL: hop.origin,
    API2_TIMEOUT_MS: '30000',
    SHUTDOWN_TIMEOUT_MS: '300',
  });
  get(`${api.url}/hello`).catch(() => {});
  await sleep(100);
  const startedMs = performance.now();
  expect(await api.stop()).toBe(1);
  expect(performance.now() - startedMs).toBeGreaterThan(290);
  expect(performance.now() - startedMs).toBeLessThan(1000);
});

test('a second signal makes it exit 1 at once', async () => {
  const hop = await httpHop(() => {});
  cleanups.push(() => hop.close());
  const api = await started('api', { API2_URL: hop.origin, API2_TIMEOUT_MS: '30000' });
  get(`${api.url}/hello`).catch(() => {});
  await sleep(100);
  api.child.kill('SIGTERM');
  await sleep(300);
  const startedMs = performance.now();
  expect(await api.stop()).toBe(1);
  expect(performance.now() - startedMs).toBeLessThan(300);
});

test('a second signal loses no log line, not even of a request that ends in the same turn of the event loop', async () => {
  let answer = () => {};
  const hop = await httpHop((_req, res) => {
    answer = () => res.end('ok');
  });
  cleanups.push(() => hop.close());
  const api = await started('api', { API2_URL: hop.origin, DRAIN_MS: '5000' });
  const client = get(`${api.url}/hello`);
  await sleep(200);
  const exited = api.stop();
  await sleep(200);
  // While it stands still, both come: it finds them together.
  api.child.kill('SIGSTOP');
  answer();
  await sleep(50);
  api.child.kill('SIGTERM');
  api.child.kill('SIGCONT');
  expect(await client).toMatchObject({ status: 200 });
  expect(await exited).toBe(1);
  const told = api.lines().filter(({ msg }) => msg === 'request completed');
  expect(told).toMatchObject([{ status: 200 }]);
});

test.each([
  ['first', 10],
  ['next', 80],
])(
  'an uncaught error in the %s turn fails only its request; the other 99 succeed and the process exits 1',
  async (_turn, throwing) => {
    const thrower = preload(`
    const { application } = require(process.cwd() + '/node_modules/express');
    const { handle } = application;
    application.handle = function (req, res, next) {
      if (req.url === '/throw') throw new Error('unforeseen');
      return handle.call(this, req, res, next);
    };
  `);
    const api2 = await started('api2', { NODE_OPTIONS: thrower });
    const clients = Array.from({ length: 100 }, () => connect(api2.port, '127.0.0.1'));
    await Promise.all(clients.map((client) => once(client, 'connect')));
    await sleep(100);
    // When resumed, the process sees all requests together: the first 64 start in one turn, the others in the next.
    api2.child.kill('SIGSTOP');
    const answered = clients.map(async (client, i) => {
      client.write(`GET /${i === throwing ? 'throw' : 'respond'} HTTP/1.1\r\nhost: a\r\n\r\n`);
      return String((await once(client, 'data'))[0]).slice(9, 12);
    });
    await sleep(200);
    const exited = once(api2.child, 'close');
    const startedMs = performance.now();
    api2.child.kill('SIGCONT');
    const statuses = await Promise.all(answered);
    expect(performance.now() - startedMs).toBeLessThan(1000);
    expect(statuses.map((status, i) => [i, status])).toEqual(
      statuses.map((_status, i) => [i, i === throwing ? '500' : '200']),
    );
    expect(await exited).toEqual([1, null]);
    const completed = api2.lines().filter(({ msg }) => msg === 'request completed');
    expect(completed).toHaveLength(100);
    const [failed] = completed.filter(({ status }) => status === 500);
    expect(failed).toMatchObject({ error: 'internal_error', err: { message: 'unforeseen' } });
  },
);

test('a fault is not taken while it stops', async () => {
  const api2 = await started('api2', { FAULTS: 'on', DRAIN_MS: '500' });
  const stopped = api2.stop();
  await sleep(100);
  const { statusCode, body } = await request(`${api2.adminUrl}/fault`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: '{"kind":"hang"}',
  });
  expect(statusCode).toBe(503);
  expect(await body.json()).toMatchObject({ code: 'stopping' });
  expect((await get(`${api2.url}/respond`)).status).toBe(200);
  expect(await stopped).toBe(0);
});

test('a connection that says nothing does not hold the stop up', async () => {
  const api2 = await started('api2');
  const silent = [api2.port, api2.adminPort].map((port) => connect(port, '127.0.0.1').resume());
  await sleep(50);
  const startedMs = performance.now();
  expect(await api2.stop()).toBe(0);
  expect(performance.now() - startedMs).toBeLessThan(1000);
  for (const client of silent) client.destroy();
});

test('wrong settings are all named in one message, without a stack, and it exits 1', async () => {
  const { code, output } = await runToEnd('api', { PORT: 'http', API2_URL: 'api2', MAX_IN_FLIGHT: '-1' });
  expect(code).toBe(1);
  expect(output).toMatch(/^Wrong settings:\n {2}PORT: .*\n {2}API2_URL: .*\n {2}MAX_IN_FLIGHT: .*\n$/);
});

test('a port that is taken is one clear line, and it exits 1', async () => {
  const api2 = await started('api2');
  const { code, output } = await runToEnd('api', {
    HOST: '127.0.0.1',
    PORT: String(api2.port),
    ADMIN_PORT: '0',
  });
  expect(code).toBe(1);
  expect(output).toBe(`Cannot listen on port ${api2.port} of 127.0.0.1: it is taken (EADDRINUSE)\n`);
});

test('readiness: 200 while it runs, whether or not api2 is there', async () => {
  const api = await started('api', { API2_URL: 'http://127.0.0.1:9' });
  expect((await get(`${api.adminUrl}/readyz`)).status).toBe(200);
  expect((await get(`${api.adminUrl}/livez`)).status).toBe(200);
  expect((await get(`${api.url}/readyz`)).status).toBe(404);
});

test('bytes that are no HTTP get 400 and are cut off', async () => {
  const api = await started('api', { API2_URL: 'http://127.0.0.1:9' });
  const client = connect(api.port, '127.0.0.1', () => client.write('no HTTP at all\r\n\r\n'));
  let answer = '';
  for await (const data of client) answer += data;
  expect(answer).toMatch(/^HTTP\/1\.1 400 /);
});

test('log lines that nobody reads wait up to a bound; those lost are counted once they are read again', async () => {
  const script = `
    const log = require('./dist/chassis/logger').createLogger('api', { logLevel: 'info', logFormat: 'json' });
    const text = 'x'.repeat(1000);
    let written = 0;
    const write = () => {
      for (let i = 0; i < 1000; i++) log.info({ text }, 'line ' + written++);
      if (written < 40_000) return setImmediate(write);
      process.stderr.write(String(process.memoryUsage().rss));
      setTimeout(() => {}, 3000);
    };
    write();
  `;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'pipe'] });
  const [rss] = await once(child.stderr, 'data');
  // 40 MB were logged, and the program alone takes 60 MB.
  expect(Number(rss) / 2 ** 20).toBeLessThan(160);
  let text = '';
  child.stdout.on('data', (data) => {
    text += data;
  });
  await once(child, 'close');
  const lines = text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
  const lost = lines.filter(({ msg }) => msg.startsWith('log lines lost'));
  expect(lost).toMatchObject([{ level: 'warn' }]);
  expect(lines.length - 1 + lost[0].lines).toBe(40_000);
  expect(lost[0].lines).toBeGreaterThan(10_000);
});
