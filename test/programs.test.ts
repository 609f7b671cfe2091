import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import { type Program, runUntilExit, start } from './programs';
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

async function get(url: string, headers = {}) {
  const { statusCode, body, headers: responseHeaders } = await request(url, { headers });
  return { status: statusCode, text: await body.text(), headers: responseHeaders };
}

/** `NODE_OPTIONS` that make a process run `script` before its main module. */
function preload(script: string) {
  const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
  cleanups.push(async () => rmSync(folder, { recursive: true }));
  const file = join(folder, 'preload.js');
  writeFileSync(file, script);
  return `--require=${file}`;
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test('/hello returns the greeting of api2, and both services log the same request id', async () => {
  const api2 = await startProgram('api2', { GREETING: 'Grüß Gott' });
  const api = await startProgram('api', { API2_URL: api2.url });
  const response = await get(`${api.url}/hello`, { 'x-request-id': 'hop-1' });
  expect(response).toMatchObject({ status: 200, text: 'Grüß Gott', headers: { 'x-request-id': 'hop-1' } });
  expect(await api.stop()).toBe(0);
  expect(await api2.stop()).toBe(0);
  for (const { lines } of [api, api2])
    expect(lines().filter(({ msg }) => msg === 'request completed')).toMatchObject([
      { requestId: 'hop-1', status: 200 },
    ]);
});

test('api responds 500 while api2 is stopped and 200 after api2 starts again, without a restart of api', async () => {
  const api2 = await startProgram('api2');
  const api = await startProgram('api', { API2_URL: api2.url });
  expect((await get(`${api.url}/hello`)).status).toBe(200);
  await api2.stop();
  const startedMs = performance.now();
  expect(await get(`${api.url}/hello`)).toMatchObject({
    status: 500,
    text: 'Internal error contacting api2',
  });
  expect(performance.now() - startedMs).toBeLessThan(2000);
  await startProgram('api2', { PORT: String(api2.port) });
  expect(await get(`${api.url}/hello`)).toMatchObject({ status: 200, text: 'Hello World!' });
});

test('while the host of API2_URL is unknown, api uses API2_FALLBACK_HOST and logs it once', async () => {
  const api2 = await startProgram('api2');
  // A label of 64 characters is invalid, so the lookup fails immediately, without a DNS server.
  const unknownHost = `${'x'.repeat(64)}.test`;
  const env = { API2_URL: `http://${unknownHost}:${api2.port}`, API2_FALLBACK_HOST: '127.0.0.1' };
  const api = await startProgram('api', env);
  for (let i = 0; i < 5; i++) expect((await get(`${api.url}/hello`)).status).toBe(200);
  await api.stop();
  expect(api.lines().filter(({ msg }) => msg === 'fallback state changed')).toMatchObject([
    { level: 'warn', nextHop: 'api2', fallback: { host: '127.0.0.1', port: api2.port }, inUse: true },
  ]);
});

test('api2 serves GET /respond, and rejects other methods and paths', async () => {
  const api2 = await startProgram('api2');
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
  const upstream = await httpUpstream(
    (_req, res) => void res.setHeader('content-type', 'application/json').end('{}'),
  );
  cleanups.push(() => upstream.close());
  const api2 = await startProgram('api2');
  const api = await startProgram('api', { API2_URL: api2.url, EXTERNAL_URL: `${upstream.origin}/` });
  const urls = ['/hello', '/data', '/books', '/books/x', '/nothing', '/', '/page.js', '/openapi.json']
    .map((path) => api.url + path)
    .concat(['/respond', '/books', '/nothing'].map((path) => api2.url + path));
  for (const url of urls) {
    const { headers } = await get(url);
    expect([url, headers['x-content-type-options']]).toEqual([url, 'nosniff']);
  }
});

test.each(['SIGTERM', 'SIGINT'] as const)(
  'on %s, api completes requests in flight and exits 0',
  async (signal) => {
    const upstream = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 400));
    cleanups.push(() => upstream.close());
    const api = await startProgram('api', { API2_URL: upstream.origin });
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
  },
);

test('api exits 1 after SHUTDOWN_TIMEOUT_MS if a request does not end', async () => {
  const upstream = await httpUpstream(() => {});
  cleanups.push(() => upstream.close());
  const api = await startProgram('api', {
    API2_URL: upstream.origin,
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

test('api exits 1 immediately on a second signal', async () => {
  const upstream = await httpUpstream(() => {});
  cleanups.push(() => upstream.close());
  const api = await startProgram('api', { API2_URL: upstream.origin, API2_TIMEOUT_MS: '30000' });
  get(`${api.url}/hello`).catch(() => {});
  await sleep(100);
  api.child.kill('SIGTERM');
  await sleep(300);
  const startedMs = performance.now();
  expect(await api.stop()).toBe(1);
  expect(performance.now() - startedMs).toBeLessThan(300);
});

test('on a second signal, no log line is lost, even if a request ends in the same turn of the event loop', async () => {
  let respond = () => {};
  const upstream = await httpUpstream((_req, res) => {
    respond = () => res.end('ok');
  });
  cleanups.push(() => upstream.close());
  const api = await startProgram('api', { API2_URL: upstream.origin, DRAIN_MS: '5000' });
  const client = get(`${api.url}/hello`);
  await sleep(200);
  const exited = api.stop();
  await sleep(200);
  // Both the response and the signal arrive while the process is suspended, so it sees them together.
  api.child.kill('SIGSTOP');
  respond();
  await sleep(50);
  api.child.kill('SIGTERM');
  api.child.kill('SIGCONT');
  expect(await client).toMatchObject({ status: 200 });
  expect(await exited).toBe(1);
  const completed = api.lines().filter(({ msg }) => msg === 'request completed');
  expect(completed).toMatchObject([{ status: 200 }]);
});

test.each([
  ['first', 10],
  ['next', 80],
])(
  'an uncaught error in the %s turn fails only its request; the other 99 succeed and the process exits 1',
  async (_turn, failingIndex) => {
    const throwOnPath = preload(`
    const { application } = require(process.cwd() + '/node_modules/express');
    const { handle } = application;
    application.handle = function (req, res, next) {
      if (req.url === '/throw') throw new Error('unforeseen');
      return handle.call(this, req, res, next);
    };
  `);
    const api2 = await startProgram('api2', { NODE_OPTIONS: throwOnPath });
    const clients = Array.from({ length: 100 }, () => connect(api2.port, '127.0.0.1'));
    await Promise.all(clients.map((client) => once(client, 'connect')));
    await sleep(100);
    // When resumed, the process sees all requests together: the first 64 start in one turn, the others in the next.
    api2.child.kill('SIGSTOP');
    const responses = clients.map(async (client, i) => {
      client.write(`GET /${i === failingIndex ? 'throw' : 'respond'} HTTP/1.1\r\nhost: a\r\n\r\n`);
      return String((await once(client, 'data'))[0]).slice(9, 12);
    });
    await sleep(200);
    const exited = once(api2.child, 'close');
    const startedMs = performance.now();
    api2.child.kill('SIGCONT');
    const statuses = await Promise.all(responses);
    expect(performance.now() - startedMs).toBeLessThan(5000);
    expect(statuses.map((status, i) => [i, status])).toEqual(
      statuses.map((_status, i) => [i, i === failingIndex ? '500' : '200']),
    );
    expect(await exited).toEqual([1, null]);
    const completed = api2.lines().filter(({ msg }) => msg === 'request completed');
    expect(completed).toHaveLength(100);
    const [failed] = completed.filter(({ status }) => status === 500);
    expect(failed).toMatchObject({ error: 'internal_error', err: { message: 'unforeseen' } });
  },
);

test('api2 rejects a new fault with 503 while it stops', async () => {
  const api2 = await startProgram('api2', { FAULTS: 'on', DRAIN_MS: '500' });
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

test('connections without a request do not delay shutdown', async () => {
  const api2 = await startProgram('api2');
  const idle = [api2.port, api2.adminPort].map((port) => connect(port, '127.0.0.1').resume());
  await sleep(50);
  const startedMs = performance.now();
  expect(await api2.stop()).toBe(0);
  expect(performance.now() - startedMs).toBeLessThan(1000);
  for (const client of idle) client.destroy();
});

test('api exits 1 with one message that lists every invalid setting, without a stack trace', async () => {
  const { code, output } = await runUntilExit('api', { PORT: 'http', API2_URL: 'api2', MAX_IN_FLIGHT: '-1' });
  expect(code).toBe(1);
  expect(output).toMatch(/^Invalid configuration:\n {2}PORT: .*\n {2}API2_URL: .*\n {2}MAX_IN_FLIGHT: .*\n$/);
});

test('api exits 1 with one clear line if its port is in use', async () => {
  const api2 = await startProgram('api2');
  const { code, output } = await runUntilExit('api', {
    HOST: '127.0.0.1',
    PORT: String(api2.port),
    ADMIN_PORT: '0',
  });
  expect(code).toBe(1);
  expect(output).toBe(
    `Cannot listen on port ${api2.port} of 127.0.0.1: the port is already in use (EADDRINUSE)\n`,
  );
});

test('/readyz and /livez return 200 even if api2 is unreachable', async () => {
  const api = await startProgram('api', { API2_URL: 'http://127.0.0.1:9' });
  expect((await get(`${api.adminUrl}/readyz`)).status).toBe(200);
  expect((await get(`${api.adminUrl}/livez`)).status).toBe(200);
  expect((await get(`${api.url}/readyz`)).status).toBe(404);
});

async function newSpaceMiB(adminUrl: string) {
  const { text } = await get(`${adminUrl}/metrics`);
  const bytes = /^nodejs_heap_space_size_total_bytes\{space="new"\} (\d+)/m.exec(text)?.[1];
  return Number(bytes) / 1024 / 1024;
}

async function expectCollection(adminUrl: string) {
  for (let waitedMs = 0; waitedMs < 3000 && (await newSpaceMiB(adminUrl)) > 4; waitedMs += 100)
    await sleep(100);
  expect(await newSpaceMiB(adminUrl)).toBeLessThanOrEqual(4);
}

/** Sends 40 requests, pausing 25 ms after each. Resolves to the longest gap between two responses, in milliseconds. */
async function keepBusy(url: string) {
  let maxGapMs = 0;
  let previousMs = performance.now();
  for (let sent = 0; sent < 40; sent++) {
    expect((await get(`${url}/respond`)).status).toBe(200);
    const nowMs = performance.now();
    maxGapMs = Math.max(maxGapMs, nowMs - previousMs);
    previousMs = nowMs;
    await sleep(25);
  }
  return maxGapMs;
}

test('an idle service collects its startup garbage', async () => {
  const { adminUrl } = await startProgram('api');
  await expectCollection(adminUrl);
});

test('a service collects its startup garbage once requests stop, not while they arrive', async () => {
  let api2: Awaited<ReturnType<typeof startProgram>>;
  // If the machine pauses the test for about 400 ms, api2 is idle and collects. Start again if a gap exceeds 300 ms.
  do api2 = await startProgram('api2');
  while ((await keepBusy(api2.url)) > 300);
  expect(await newSpaceMiB(api2.adminUrl)).toBeGreaterThan(4);
  await expectCollection(api2.adminUrl);
});

test('a request that is not HTTP gets 400 and its connection is closed', async () => {
  const api = await startProgram('api', { API2_URL: 'http://127.0.0.1:9' });
  const client = connect(api.port, '127.0.0.1', () => client.write('not HTTP at all\r\n\r\n'));
  let response = '';
  for await (const data of client) response += data;
  expect(response).toMatch(/^HTTP\/1\.1 400 /);
});

test('a log that is not read uses bounded memory, and reports the number of dropped lines when it is read again', async () => {
  const script = `
    const log = require('./dist/chassis/telemetry/logger').createLogger('api', { logLevel: 'info', logFormat: 'json' });
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
  // The script logs 40 MB, and Node alone uses 60 MB.
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
  const dropped = lines.filter(({ msg }) => msg.startsWith('dropped log lines'));
  expect(dropped).toMatchObject([{ level: 'warn' }]);
  expect(lines.length - 1 + dropped[0].lines).toBe(40_000);
  expect(dropped[0].lines).toBeGreaterThan(10_000);
});

test.each([
  ['while a write is in flight', `log(1000); process.exit(3)`],
  // This reader buffers some data at some time, so the pipe must have been full for a while.
  [
    'while no write is in flight',
    `let fullMs = 0;
    setInterval(() => {
      fullMs = fillPipe() ? 0 : fullMs + 20;
      if (fullMs < 300) return;
      log(5);
      process.exit(3);
    }, 20)`,
  ],
])(
  'a process that exits %s waits for the reader of its log, and exits when the reader closes it',
  async (_, exit) => {
    const script = `
    const logger = require('./dist/chassis/telemetry/logger').createLogger('api', { logLevel: 'info', logFormat: 'json' });
    const text = 'x'.repeat(1000);
    const log = (lines) => { for (let i = 0; i < lines; i++) logger.info({ text }, 'line'); };
    const fillPipe = () => {
      let written = 0;
      try { for (;;) written += require('node:fs').writeSync(1, text); } catch {}
      return written > 0;
    };
    ${exit};
  `;
    const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
    await sleep(1000);
    expect(child.exitCode).toBeNull();
    child.stdout.destroy();
    const killTimer = setTimeout(() => child.kill('SIGKILL'), 3000);
    expect(await once(child, 'exit')).toEqual([3, null]);
    clearTimeout(killTimer);
  },
);
