import { once } from 'node:events';
import type { RequestListener } from 'node:http';
import { connect } from 'node:net';
import { HttpServer, TIMEOUTS } from './server';

/** A server that rejects requests with a status and no body. */
function serverOf(app: RequestListener, timeouts = TIMEOUTS) {
  return new HttpServer(app, timeouts, (res, { status }) => void res.writeHead(status).end());
}

test.each([
  ['says nothing', ''],
  ['sends half a header', 'GET / HTTP/1.1\r\nhost: a\r\nx-slow'],
  ['sends half a body', 'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf'],
])('a client that %s is cut off', async (_what, bytes) => {
  const server = serverOf((req) => void req.resume(), {
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
  await server.finish();
});

test('the time-outs are checked often enough to hold, and idle connections outlast those of the client', () => {
  expect(TIMEOUTS.connectionsCheckingInterval).toBeLessThanOrEqual(TIMEOUTS.headersTimeout / 5);
  expect(TIMEOUTS.idleTimeout).toBeGreaterThan(60_000);
});

test('a client that takes nothing of its answer is cut off, one that waits for it is not', async () => {
  const server = serverOf(
    (req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end('slow'), 600);
      else res.end(Buffer.alloc(64 * 1024 * 1024));
    },
    { ...TIMEOUTS, unreadTimeout: 200 },
  );
  const port = await server.listen('127.0.0.1', 0);
  const reader = connect(port, '127.0.0.1', () => reader.write('GET /slow HTTP/1.1\r\nhost: a\r\n\r\n'));
  const [answer] = await once(reader, 'data');
  expect(String(answer)).toMatch(/^HTTP\/1\.1 200 /);
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
  reader.destroy();
  await server.finish();
});

test('a connection without a request is cut off after the time-out, one that is used or waits is not', async () => {
  const server = serverOf(
    (req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end('slow'), 800);
      else res.end('ok');
    },
    { ...TIMEOUTS, unreadTimeout: 200, idleTimeout: 400 },
  );
  const port = await server.listen('127.0.0.1', 0);
  const ask = (path = '/') => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`;
  const idle = connect(port, '127.0.0.1', () => idle.write(ask())).resume();
  await once(idle, 'data');
  const idleFromMs = performance.now();
  const waits = connect(port, '127.0.0.1', () => waits.write(ask('/slow')));
  const used = connect(port, '127.0.0.1', () => used.write(ask())).resume();
  const use = setInterval(() => used.write(ask()), 100);
  used.once('close', () => clearInterval(use));
  await once(idle, 'close');
  expect(performance.now() - idleFromMs).toBeGreaterThanOrEqual(395);
  expect(performance.now() - idleFromMs).toBeLessThan(700);
  const [answer] = await once(waits, 'data');
  expect(String(answer)).toContain('slow');
  expect(used.destroyed).toBe(false);
  used.destroy();
  await server.finish();
});

test('of many requests at once, a turn of the event loop begins 64; the others follow in order, but those whose client left', async () => {
  const turns: number[] = [];
  const begun: string[] = [];
  let turn = 0;
  let isOver = false;
  const nextTurn = () => {
    turn++;
    if (!isOver) setImmediate(nextTurn);
  };
  const server = serverOf((req, res) => {
    turns[turn] = (turns[turn] ?? 0) + 1;
    begun.push(String(req.url));
    res.end('ok');
  });
  const port = await server.listen('127.0.0.1', 0);
  const clients = Array.from({ length: 300 }, () => connect(port, '127.0.0.1').resume());
  await Promise.all(clients.map((client) => once(client, 'connect')));
  await new Promise((resolve) => setTimeout(resolve, 100));
  nextTurn();
  const answered = clients.slice(0, 299).map((client) => once(client, 'data'));
  for (const [i, client] of clients.entries()) client.write(`GET /${i} HTTP/1.1\r\nhost: a\r\n\r\n`);
  clients[299]?.resetAndDestroy();
  await Promise.all(answered);
  isOver = true;
  expect(Math.max(...turns.filter(Number.isFinite))).toBe(64);
  expect(begun).toEqual(clients.slice(0, 299).map((_client, i) => `/${i}`));
  for (const client of clients) client.destroy();
  await server.finish();
}, 10_000);

test('a connection that pipelines without end is cut off, and its requests do not pile up', async () => {
  let begun = 0;
  const server = serverOf((_req, res) => {
    begun++;
    setTimeout(() => res.end('ok'), 50);
  });
  const port = await server.listen('127.0.0.1', 0);
  const client = connect(port, '127.0.0.1', () =>
    client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n'.repeat(10_000)),
  );
  client.resume().on('error', () => {});
  await new Promise((resolve) => client.once('close', resolve));
  expect(begun).toBeLessThanOrEqual(128);
  await server.finish();
});

describe('finishing', () => {
  test.each([
    ['says nothing', ''],
    ['has sent half a header', 'GET / HTTP/1.1\r\nhost: a\r\nx-slow'],
    ['was answered before its body was whole', 'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nh'],
    ['was answered', 'GET / HTTP/1.1\r\nhost: a\r\n\r\n'],
  ])('does not wait for a connection that %s', async (_what, bytes) => {
    const server = serverOf((_req, res) => void res.end('ok'));
    const port = await server.listen('127.0.0.1', 0);
    const client = connect(port, '127.0.0.1', () => client.write(bytes));
    client.resume();
    await new Promise((resolve) => setTimeout(resolve, 50));
    const startedMs = performance.now();
    await server.finish();
    expect(performance.now() - startedMs).toBeLessThan(200);
  });

  test('waits for answers that are still being sent, pipelined ones too', async () => {
    const size = 16 * 1024 * 1024;
    const server = serverOf(
      (_req, res) => void res.setHeader('content-length', size).end(Buffer.alloc(size)),
    );
    const port = await server.listen('127.0.0.1', 0);
    const client = connect(port, '127.0.0.1', () =>
      client.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n'.repeat(3)),
    );
    client.pause();
    await new Promise((resolve) => setTimeout(resolve, 100));
    const finished = server.finish();
    await new Promise((resolve) => setTimeout(resolve, 100));
    let received = 0;
    client.on('data', (data) => (received += data.length)).resume();
    await Promise.all([finished, once(client, 'close')]);
    expect(received).toBeGreaterThan(3 * size);
  });
});

test.each([
  ['http://[/hello?x=1', '/hello?x=1'],
  ['HTTP://a.invalid', '/'],
  ['http://a?x', '/?x'],
  ['*', '/*'],
])('the target %s is routed as %s', async (target, url) => {
  const server = serverOf((req, res) => void res.setHeader('connection', 'close').end(req.url));
  const port = await server.listen('127.0.0.1', 0);
  const client = connect(port, '127.0.0.1', () =>
    client.write(`OPTIONS ${target} HTTP/1.1\r\nhost: a\r\n\r\n`),
  );
  let answer = '';
  for await (const data of client) answer += data;
  expect(answer.endsWith(`\r\n\r\n${url}`)).toBe(true);
  await server.finish();
});
