import { once } from 'node:events';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import express from 'express';
import { captureLog } from '../../test/app-under-test';
import { Metrics } from '../telemetry/metrics';
import type { RequestRecord } from '../telemetry/request-record';
import { Traffic } from '../telemetry/traffic';
import { jsonBody } from './json-body';
import { notFound, problemHandler } from './problem';
import { sendText } from './send';
import { HttpServer, TIMEOUTS } from './server';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

/** Starts a server with a JSON route, a slow one and short timeouts. */
async function startServer(requestTimeout = 300) {
  const { log, lines, completed } = captureLog();
  const metrics: Metrics = new Metrics(() => traffic.size);
  const traffic = new Traffic({ log, metrics });
  const app = express();
  app.use(traffic.record());
  const records: RequestRecord[] = [];
  app.use((_req, res, next) => {
    records.push(res.locals.record);
    next();
  });
  const received: unknown[] = [];
  app.post('/json', jsonBody(), (req, res) => {
    received.push(req.body);
    sendText(res, 200, 'received');
  });
  app.get('/slow', (_req, res) => void setTimeout(() => sendText(res, 200, 'slow'), 200));
  app.get('/started', (_req, res) => void res.write('started'));
  app.use(notFound());
  app.use(problemHandler());
  const timeouts = { headersTimeout: 200, requestTimeout, connectionsCheckingInterval: 50 };
  const server = new HttpServer(app, { ...TIMEOUTS, ...timeouts }, traffic.reject());
  const port = await server.listen('127.0.0.1', 0);
  cleanups.push(() => server.close());
  return { port, lines, completed, metrics, records, received };
}

/** Resolves to everything that the server sends until the connection ends. */
async function exchange(port: number, bytes: string | Buffer) {
  const client = connect(port, '127.0.0.1', () => client.write(bytes));
  let text = '';
  for await (const data of client) text += data;
  return text;
}

const POST = 'POST /json HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n';
const CHUNKED = `${POST}transfer-encoding: chunked\r\n\r\n`;

test.each<[string, string, number, string, string, string]>([
  ['that is not HTTP', 'not an HTTP request\r\n\r\n', 400, 'bad_request', '_OTHER', 'unmatched'],
  ['without Host', 'GET /slow HTTP/1.1\r\n\r\n', 400, 'bad_request', 'GET', 'unmatched'],
  [
    'with an unknown Expect',
    'GET /slow HTTP/1.1\r\nhost: a\r\nexpect: unknown\r\n\r\n',
    417,
    'expectation_failed',
    'GET',
    'unmatched',
  ],
  [
    'whose header is larger than 16 kB',
    `GET / HTTP/1.1\r\nhost: a\r\nx: ${'x'.repeat(20_000)}\r\n\r\n`,
    431,
    'request_header_fields_too_large',
    '_OTHER',
    'unmatched',
  ],
  ['whose header stops halfway', 'GET / HTTP/1.1\r\nhost', 408, 'request_timeout', '_OTHER', 'unmatched'],
  ['whose body stops halfway', `${POST}content-length: 9\r\n\r\n{`, 408, 'request_timeout', 'POST', '/json'],
  ['with a malformed chunk', `${CHUNKED}zz\r\n`, 400, 'bad_request', 'POST', '/json'],
  [
    'with 20 kB of chunk extensions',
    `${CHUNKED}1;${'x'.repeat(20_000)}\r\n`,
    413,
    'content_too_large',
    'POST',
    '/json',
  ],
])(
  'a request %s gets a problem document, and is logged and counted',
  async (_title, bytes, status, code, method, route) => {
    const { port, completed, metrics, lines } = await startServer();
    const [head = '', body = ''] = (await exchange(port, bytes)).split('\r\n\r\n');
    const document = JSON.parse(body);
    expect(document).toMatchObject({ type: 'about:blank', status, code, requestId: expect.any(String) });
    expect(head).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    for (const header of [
      'content-type: application/problem+json',
      'x-content-type-options: nosniff',
      `x-request-id: ${document.requestId}`,
      'Connection: close',
    ])
      expect(head.split('\r\n')).toContain(header);
    await sleep(20);
    expect(completed()).toMatchObject([{ requestId: document.requestId, method, route, status }]);
    expect(lines).toHaveLength(1);
    const label = `{method="${method}",route="${route}",status="${status}"}`;
    expect(await metrics.registry.metrics()).toContain(
      `http_server_request_duration_seconds_count${label} 1\n`,
    );
  },
);

test('a request without Host gets a response with its own request id', async () => {
  const { port } = await startServer();
  expect(await exchange(port, 'GET / HTTP/1.1\r\nx-request-id: mine\r\n\r\n')).toMatch(/"requestId":"mine"/);
});

test('an HTTP/1.0 request is served without Host, and a request with Expect: 100-continue gets the 100', async () => {
  const { port } = await startServer();
  expect(await exchange(port, 'GET /slow HTTP/1.0\r\n\r\n')).toMatch(/^HTTP\/1\.1 200 /);
  const continued = `${POST}expect: 100-continue\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}`;
  expect(await exchange(port, continued)).toMatch(/^HTTP\/1\.1 100 Continue\r\n\r\nHTTP\/1\.1 200 /);
});

test('a request with Expect: 100-continue that is rejected by its headers gets no 100', async () => {
  const { port } = await startServer();
  const text = await exchange(port, `${POST}expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n`);
  expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 413']);
});

test('when a request with a large pending body is rejected, its connection is closed', async () => {
  const { port, completed } = await startServer(30_000);
  for (const path of ['/json', '/nothing']) {
    const head = `POST ${path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000000000000`;
    expect(await exchange(port, `${head}\r\n\r\n`)).toMatch(/^HTTP\/1\.1 4\d\d /);
  }
  expect(completed().map(({ status }) => status)).toEqual([413, 404]);
});

test('CONNECT gets 405, is logged with its id, and its connection is closed', async () => {
  const { port, completed } = await startServer();
  const text = await exchange(port, 'CONNECT a:80 HTTP/1.1\r\nhost: a\r\nx-request-id: mine\r\n\r\n');
  expect(text).toMatch(/^HTTP\/1\.1 405 [\s\S]*"requestId":"mine"/);
  await sleep(20);
  expect(completed()).toMatchObject([{ status: 405, requestId: 'mine', method: 'CONNECT' }]);
});

test('pipelined requests before malformed bytes are all served, in order', async () => {
  const { port, completed } = await startServer();
  const get = (path: string) => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`;
  const text = await exchange(port, `${get('/slow')}${get('/nothing')}malformed\r\n\r\n`);
  expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 200', 'HTTP/1.1 404', 'HTTP/1.1 400']);
  await sleep(20);
  expect(completed().map(({ status }) => status)).toEqual([200, 404, 400]);
});

test('when malformed bytes arrive, a response that has started is aborted', async () => {
  const { port } = await startServer();
  const bytes =
    'GET /started HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nmalformed\r\n';
  const text = await exchange(port, bytes).catch((error) => String(error));
  expect(text.match(/HTTP\/1\.1/g) ?? []).toHaveLength(1);
  expect(text).not.toContain('\r\n0\r\n');
});

test('malformed bytes in a body get no second response if the request already has one', async () => {
  const { port, completed } = await startServer();
  const text = await exchange(
    port,
    'POST /nothing HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n',
  );
  expect(text.match(/HTTP\/1\.1 \d+/g)).toHaveLength(1);
  await sleep(20);
  expect(completed()).toHaveLength(1);
});

test('when the rest of a body arrives after the 408, the handler is not called and the rest is not counted', async () => {
  const { port, received, records, completed } = await startServer();
  const client = connect(port, '127.0.0.1');
  client.write(`${POST}content-length: 4\r\n\r\n[1`);
  const [response] = await once(client, 'data');
  expect(String(response)).toMatch(/^HTTP\/1\.1 408 /);
  client.write(' ]');
  await sleep(100);
  expect(received).toEqual([]);
  expect(records).toMatchObject([{ bufferedBytes: 2 }]);
  expect(completed()).toMatchObject([{ status: 408 }]);
  client.destroy();
});

test('a chunked body of 80 MB gets 413, and its client does not count as slow', async () => {
  const { port, completed } = await startServer(30_000);
  const client = connect(port, '127.0.0.1');
  client.write(CHUNKED);
  const chunk = `${(1_000_000).toString(16)}\r\n${'x'.repeat(1_000_000)}\r\n`;
  for (let i = 0; i < 80; i++) if (!client.write(chunk)) await once(client, 'drain');
  client.write('0\r\n\r\n');
  const [response] = await once(client, 'data');
  expect(String(response)).toMatch(/^HTTP\/1\.1 413 /);
  await sleep(20);
  expect(completed()).toMatchObject([{ status: 413 }]);
  expect(completed()[0]).not.toHaveProperty('error');
  client.destroy();
}, 20_000);

test.each([
  ['malformed bytes', 'malformed\r\n\r\n', 400],
  ['an incomplete header', 'GET / HTTP/1.1\r\nhost', 408],
])(
  'after a response that was sent before the request body arrived, %s gets a response and the connection is closed',
  async (_title, bytes, status) => {
    const { port } = await startServer();
    const client = connect(port, '127.0.0.1');
    let text = '';
    client.on('data', (data) => (text += data));
    const closed = once(client, 'close', { signal: AbortSignal.timeout(2000) });
    client.write('POST /nothing HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n');
    await once(client, 'data');
    client.write('body');
    await sleep(50);
    client.write(bytes);
    await closed;
    expect(text.match(/HTTP\/1\.1 \d+/g)).toEqual(['HTTP/1.1 404', `HTTP/1.1 ${status}`]);
  },
);

test.each<[string, Buffer]>([
  ['a TLS handshake', Buffer.from('1603010200010001fc0303', 'hex')],
  ['a connection that sends nothing', Buffer.alloc(0)],
])('%s is closed without a response, a log line or a metric', async (_title, bytes) => {
  const { port, lines, metrics } = await startServer();
  expect(await exchange(port, bytes)).toBe('');
  await sleep(20);
  expect(lines).toEqual([]);
  expect(await metrics.registry.metrics()).not.toContain('http_server_request_duration_seconds_count');
});

test('a client that resets its connection in the middle of a header is not logged', async () => {
  const { port, lines } = await startServer();
  const client = connect(port, '127.0.0.1', () => client.write('GET / HTTP/1.1\r\nhost'));
  await once(client, 'connect');
  await sleep(50);
  client.resetAndDestroy();
  await sleep(300);
  expect(lines).toEqual([]);
});

test('a client that is rejected while it is still sending can read the complete response', async () => {
  const { port } = await startServer();
  const client = connect(port, '127.0.0.1');
  const errors: unknown[] = [];
  client.on('error', (error) => errors.push(error));
  client.write(`GET / HTTP/1.1\r\nhost: a\r\nx: ${'x'.repeat(20_000)}`);
  const sending = setInterval(() => client.write('x'.repeat(1000)), 5);
  await sleep(200);
  clearInterval(sending);
  let text = '';
  for await (const data of client) text += data;
  expect(text).toMatch(/^HTTP\/1\.1 431 .*"code":"request_header_fields_too_large"/s);
  expect(errors).toEqual([]);
});
