import { AsyncLocalStorage } from 'node:async_hooks';
import { once } from 'node:events';
import { type IncomingMessage, type RequestListener, Server } from 'node:http';
import { connect } from 'node:net';
import { HttpServer, TIMEOUTS } from './server';

/** Creates a server that rejects invalid requests with a status and no body. */
function createTestServer(app: RequestListener, timeouts = TIMEOUTS) {
  return new HttpServer(app, timeouts, (res, { status }) => void res.writeHead(status).end());
}

test.each([
  ['sends nothing', ''],
  ['sends half a header', 'GET / HTTP/1.1\r\nhost: a\r\nx-slow'],
  ['sends half a body', 'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf'],
])('a client that %s is disconnected', async (_title, bytes) => {
  const server = createTestServer((req) => void req.resume(), {
    ...TIMEOUTS,
    headersTimeout: 200,
    requestTimeout: 300,
    connectionsCheckingInterval: 50,
  });
  const port = await server.listen('127.0.0.1', 0);
  const startedMs = performance.now();
  const client = connect(port, '127.0.0.1', () => client.write(bytes));
  client.resume();
  await once(client, 'close');
  expect(performance.now() - startedMs).toBeLessThan(1000);
  await server.close();
});

test('the timeouts are checked often enough, and idle connections outlast those of the client', () => {
  expect(TIMEOUTS.connectionsCheckingInterval).toBeLessThanOrEqual(TIMEOUTS.headersTimeout / 5);
  expect(TIMEOUTS.idleTimeout).toBeGreaterThan(60_000);
});

test('a client that reads nothing of its response is disconnected; one that waits for a response is not', async () => {
  const server = createTestServer(
    (req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end('slow'), 600);
      else res.end(Buffer.alloc(64 * 1024 * 1024));
    },
    { ...TIMEOUTS, sendTimeout: 200 },
  );
  const port = await server.listen('127.0.0.1', 0);
  const waiting = connect(port, '127.0.0.1', () => waiting.write('GET /slow HTTP/1.1\r\nhost: a\r\n\r\n'));
  const [response] = await once(waiting, 'data');
  expect(String(response)).toMatch(/^HTTP\/1\.1 200 /);
  const client = connect(port, '127.0.0.1', () => client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n'));
  client.pause();
  await new Promise((resolve) => setTimeout(resolve, 800));
  let received = 0;
  client
    .on('error', () => {})
    .on('data', (data) => (received += data.length))
    .resume();
  await once(client, 'close');
  expect(received).toBeLessThan(64 * 1024 * 1024);
  waiting.destroy();
  await server.close();
});

test('an idle connection is closed after the timeout; one with requests or a pending response is not', async () => {
  const server = createTestServer(
    (req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end('slow'), 800);
      else res.end('ok');
    },
    { ...TIMEOUTS, sendTimeout: 200, idleTimeout: 400 },
  );
  const port = await server.listen('127.0.0.1', 0);
  const get = (path = '/') => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`;
  const idle = connect(port, '127.0.0.1', () => idle.write(get())).resume();
  await once(idle, 'data');
  const idleFromMs = performance.now();
  const waiting = connect(port, '127.0.0.1', () => waiting.write(get('/slow')));
  const used = connect(port, '127.0.0.1', () => used.write(get())).resume();
  const timer = setInterval(() => used.write(get()), 100);
  used.once('close', () => clearInterval(timer));
  await once(idle, 'close');
  expect(performance.now() - idleFromMs).toBeGreaterThanOrEqual(395);
  expect(performance.now() - idleFromMs).toBeLessThan(700);
  const [response] = await once(waiting, 'data');
  expect(String(response)).toContain('slow');
  expect(used.destroyed).toBe(false);
  used.destroy();
  await server.close();
});

test('with many requests at once, each turn of the event loop starts at most 64 in order, and skips disconnected clients', async () => {
  const turns: number[] = [];
  const handled: string[] = [];
  let turn = 0;
  let isDone = false;
  const nextTurn = () => {
    turn++;
    if (!isDone) setImmediate(nextTurn);
  };
  const server = createTestServer((req, res) => {
    turns[turn] = (turns[turn] ?? 0) + 1;
    handled.push(String(req.url));
    res.end('ok');
  });
  const port = await server.listen('127.0.0.1', 0);
  const clients = Array.from({ length: 300 }, () => connect(port, '127.0.0.1').resume());
  await Promise.all(clients.map((client) => once(client, 'connect')));
  for (const client of clients) {
    client.write('GET /first HTTP/1.1\r\nhost: a\r\n\r\n');
    await once(client, 'data');
  }
  turns.length = 0;
  handled.length = 0;
  nextTurn();
  const responses = clients.slice(0, 299).map((client) => once(client, 'data'));
  for (const [i, client] of clients.entries()) client.write(`GET /${i} HTTP/1.1\r\nhost: a\r\n\r\n`);
  clients[299]?.resetAndDestroy();
  // Block this process while the kernel delivers everything, so that the server reads all requests in one turn.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
  await Promise.all(responses);
  isDone = true;
  expect(Math.max(...turns.filter(Number.isFinite))).toBe(64);
  expect(handled).toEqual(clients.slice(0, 299).map((_client, i) => `/${i}`));
  for (const client of clients) client.destroy();
  await server.close();
}, 10_000);

test('each request is handled in the async context of its own request event', async () => {
  const context = new AsyncLocalStorage<string>();
  const { emit } = Server.prototype;
  // As tracing tools do.
  Server.prototype.emit = function (this: Server, event: string, ...args: unknown[]) {
    const emitEvent = () => emit.apply(this, [event, ...args] as Parameters<typeof emit>);
    return event === 'request'
      ? context.run(String((args[0] as IncomingMessage).url), emitEvent)
      : emitEvent();
  } as typeof emit;
  const server = createTestServer((_req, res) => void res.end(context.getStore()));
  try {
    const port = await server.listen('127.0.0.1', 0);
    const paths = ['/a', '/b', '/c', '/d'];
    const last = 'connection: close\r\n';
    const client = connect(port, '127.0.0.1');
    client.write(
      paths.map((path) => `GET ${path} HTTP/1.1\r\nhost: a\r\n${path === '/d' ? last : ''}\r\n`).join(''),
    );
    let responses = '';
    for await (const data of client) responses += data;
    expect(responses.match(/^\/./gm)).toEqual(paths);
  } finally {
    Server.prototype.emit = emit;
    await server.close();
  }
});

test('a connection that pipelines more than 128 requests is closed', async () => {
  let handled = 0;
  const server = createTestServer((_req, res) => {
    handled++;
    setTimeout(() => res.end('ok'), 50);
  });
  const port = await server.listen('127.0.0.1', 0);
  const client = connect(port, '127.0.0.1', () =>
    client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n'.repeat(10_000)),
  );
  client.resume().on('error', () => {});
  await new Promise((resolve) => client.once('close', resolve));
  expect(handled).toBeLessThanOrEqual(128);
  await server.close();
});

describe('close', () => {
  test.each([
    ['sends nothing', ''],
    ['has sent half a header', 'GET / HTTP/1.1\r\nhost: a\r\nx-slow'],
    [
      'has its response before its body is complete',
      'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nh',
    ],
    ['has its response', 'GET / HTTP/1.1\r\nhost: a\r\n\r\n'],
  ])('does not wait for a connection that %s', async (_title, bytes) => {
    const server = createTestServer((_req, res) => void res.end('ok'));
    const port = await server.listen('127.0.0.1', 0);
    const client = connect(port, '127.0.0.1', () => client.write(bytes));
    client.resume();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const startedMs = performance.now();
    await server.close();
    expect(performance.now() - startedMs).toBeLessThan(200);
  });

  test('waits for responses that are still being sent, including pipelined ones', async () => {
    const size = 16 * 1024 * 1024;
    const server = createTestServer(
      (_req, res) => void res.setHeader('content-length', size).end(Buffer.alloc(size)),
    );
    const port = await server.listen('127.0.0.1', 0);
    const client = connect(port, '127.0.0.1', () =>
      client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n'.repeat(3)),
    );
    client.pause();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const closed = server.close();
    await new Promise((resolve) => setTimeout(resolve, 100));
    let received = 0;
    client.on('data', (data) => (received += data.length)).resume();
    await Promise.all([closed, once(client, 'close')]);
    expect(received).toBeGreaterThan(3 * size);
  });
});

test.each([
  ['http://[/hello?x=1', '/hello?x=1'],
  ['HTTP://a.invalid', '/'],
  ['http://a?x', '/?x'],
  ['*', '/*'],
])('the request target %s is routed as %s', async (target, url) => {
  const server = createTestServer((req, res) => void res.setHeader('connection', 'close').end(req.url));
  const port = await server.listen('127.0.0.1', 0);
  const client = connect(port, '127.0.0.1', () =>
    client.write(`OPTIONS ${target} HTTP/1.1\r\nhost: a\r\n\r\n`),
  );
  let response = '';
  for await (const data of client) response += data;
  expect(response.endsWith(`\r\n\r\n${url}`)).toBe(true);
  await server.close();
});
