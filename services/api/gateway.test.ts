import { once } from 'node:events';
import { createServer, type IncomingMessage, request as nodeRequest } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import request, { type Response } from 'supertest';
import { apiOver } from '../../test/app-under-test';
import { deadPort, httpHop, rawHop, type StubHop } from '../../test/stub-hop';

const TIMEOUT_MS = 400;
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

function over(hop: StubHop | string, options = {}) {
  const api = apiOver(typeof hop === 'string' ? hop : hop.origin, { timeoutMs: TIMEOUT_MS, ...options });
  cleanups.push(() => api.api2.close());
  if (typeof hop !== 'string') cleanups.push(() => hop.close());
  return api;
}

async function listening(app: Parameters<typeof createServer>[1]) {
  const server = createServer(app).listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(async () => server.close());
  return (server.address() as AddressInfo).port;
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(condition: () => boolean) {
  for (let i = 0; i < 200 && !condition(); i++) await sleep(10);
  expect(condition()).toBe(true);
}

describe('what goes to api2', () => {
  test('method, path, query, body and exactly the listed headers', async () => {
    let seen:
      | { method?: string | undefined; url?: string | undefined; names: string[]; body: string }
      | undefined;
    const hop = await httpHop(async (req, res) => {
      const names = req.rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
      let body = '';
      for await (const chunk of req) body += chunk;
      seen = { method: req.method, url: req.url, names: names.sort(), body };
      res.end();
    });
    const { app } = over(hop);
    const listed = {
      accept: 'a/b',
      'if-match': '"a"',
      'if-none-match': '"b"',
      'idempotency-key': 'k',
      baggage: 'x=y',
    };
    const kept = {
      cookie: 'a=b',
      authorization: 'Bearer x',
      'x-forwarded-for': '1.2.3.4',
      'accept-encoding': 'gzip',
      te: 'trailers',
    };
    await request(app)
      .put('/books/7?a=%2F&b')
      .set({ ...listed, ...kept, 'x-request-id': 'r-1' })
      .type('text/plain')
      .send('body');
    expect(seen).toEqual({
      method: 'PUT',
      url: '/books/7?a=%2F&b',
      names: [
        'accept',
        'baggage',
        'connection',
        'content-length',
        'content-type',
        'host',
        'idempotency-key',
        'if-match',
        'if-none-match',
        'x-request-id',
      ],
      body: 'body',
    });
  });

  test('headers that Connection names stay behind, on both ways', async () => {
    let seen: IncomingMessage['headers'] = {};
    const hop = await httpHop((req, res) => {
      seen = req.headers;
      res
        .writeHead(200, {
          connection: 'keep-alive, ETag',
          etag: '"a"',
          location: '/x',
          'x-inner': '1',
          server: 'inner',
        })
        .end();
    });
    const { app } = over(hop);
    const headers = { connection: 'close, If-Match,traceparent', 'if-match': '"a"', accept: 'a/b' };
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const res = await request(app)
      .get('/books/1')
      .set({ ...headers, traceparent });
    expect(seen).not.toHaveProperty('if-match');
    expect(seen).not.toHaveProperty('traceparent');
    expect(seen).toHaveProperty('accept', 'a/b');
    expect(res.headers).not.toHaveProperty('etag');
    expect(res.headers).not.toHaveProperty('x-inner');
    expect(res.headers).not.toHaveProperty('server');
    expect(res.headers).toHaveProperty('location', '/x');
  });

  test.each([
    ['GET /books/../respond', 404],
    ['GET /books/..%2frespond', 404],
    ['GET /books/%2e%2e', 404],
    ['GET /books/..', 404],
    ['GET //evil.invalid/books', 404],
    ['GET /books/..%5c..%5crespond', 404],
    ['GET http://127.0.0.1:9/respond', 404],
    ['GET http://127.0.0.1:9/books', 200],
    ['GET http://[bad/books?limit=1', 404],
    ['GET /books/%zz', 400],
  ])('%s: %i, and never another path than /books of api2', async (line, status) => {
    const paths: unknown[] = [];
    const hop = await httpHop((req, res) => {
      paths.push(req.url?.replace(/\?.*/, ''));
      res.end();
    });
    const port = await listening(over(hop).app);
    const client = connect(port, '127.0.0.1', () =>
      client.write(`${line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n`),
    );
    let answer = '';
    for await (const data of client) answer += data;
    expect(Number(answer.split(' ')[1])).toBe(status);
    expect(paths).toEqual(status === 200 ? ['/books'] : []);
  });

  test.each(['POST', 'PUT', 'DELETE'])('a %s is never sent twice', async (method) => {
    const methods: unknown[] = [];
    let fail = (socket: Socket) => void socket.destroy();
    const hop = await httpHop((req) => {
      methods.push(req.method);
      fail(req.socket);
    });
    const { app } = over(hop);
    const ask = () =>
      request(app)
        [method.toLowerCase() as 'post'](method === 'POST' ? '/books' : '/books/1')
        .type('json')
        .send('{}');
    expect((await ask()).body).toMatchObject({ status: 502, code: 'connection_terminated' });
    fail = () => {};
    expect((await ask()).body).toMatchObject({ status: 504, code: 'http_response_timeout' });
    expect(methods).toEqual([method, method]);
  });

  test('a GET is sent again after a reset, and once more when it is slow', async () => {
    let requests = 0;
    const hop = await httpHop((req, res) => {
      requests++;
      if (requests === 1) req.socket.destroy();
      else if (requests !== 3) res.end('{}');
    });
    const { app } = over(hop);
    await request(app).get('/books').expect(200);
    expect(requests).toBe(2);
    await request(app).get('/books').expect(200);
    expect(requests).toBe(4);
  });
});

describe('streaming', () => {
  test('a 90 kB upload reaches a slow api2 while it is sent, and the deadline counts from its end', async () => {
    let received = 0;
    const hop = await httpHop(async (req, res) => {
      for await (const chunk of req) {
        received += chunk.length;
        await sleep(5);
      }
      res.writeHead(201, { location: '/books/1' }).end('done');
    });
    const port = await listening(over(hop).app);
    const upload = nodeRequest({
      port,
      host: '127.0.0.1',
      method: 'POST',
      path: '/books',
      headers: { 'content-type': 'application/json' },
    });
    const answered = once(upload, 'response');
    for (let sent = 0; sent < 9; sent++) {
      upload.write(Buffer.alloc(10_000, 'x'));
      await sleep(70);
      if (sent === 4) expect(received).toBeGreaterThanOrEqual(40_000);
    }
    upload.end();
    const [response] = (await answered) as [IncomingMessage];
    response.resume();
    expect(response.statusCode).toBe(201);
    expect(received).toBe(90_000);
  });

  test('a client that pauses for longer than the deadline may go on', async () => {
    const hop = await httpHop(async (req, res) => {
      let body = '';
      for await (const chunk of req) body += chunk;
      res.writeHead(201).end(body);
    });
    const port = await listening(over(hop).app);
    const upload = nodeRequest({ port, host: '127.0.0.1', method: 'POST', path: '/books' });
    upload.write('some');
    await sleep(3 * TIMEOUT_MS);
    const answered = once(upload, 'response');
    upload.end('thing');
    const [response] = (await answered) as [IncomingMessage];
    response.resume();
    expect(response.statusCode).toBe(201);
  });

  test('an api2 that dies, or reads no further, in the middle of an upload: 502, or 504', async () => {
    const ends: ((socket: Socket) => void)[] = [
      (socket) => socket.destroy(),
      (socket) => void socket.pause(),
    ];
    for (const [i, status] of [502, 504].entries()) {
      const hop = await httpHop((req) => void req.once('data', () => ends[i]?.(req.socket)));
      const port = await listening(over(hop).app);
      const upload = nodeRequest({ port, host: '127.0.0.1', method: 'POST', path: '/books' });
      const answered = once(upload, 'response');
      const fill = () => {
        while (!upload.destroyed && upload.write(Buffer.alloc(65_536)));
      };
      upload.on('drain', fill).on('error', () => {});
      fill();
      const [response] = (await answered) as [IncomingMessage];
      expect(response.statusCode).toBe(status);
      upload.destroy();
    }
  });

  test('a client that leaves in the middle of an upload is noticed by api2', async () => {
    let aborted = false;
    const hop = await httpHop((req) => {
      req.on('aborted', () => (aborted = true)).resume();
    });
    const { app, completed } = over(hop, { timeoutMs: 10_000 });
    const port = await listening(app);
    const client = connect(port, '127.0.0.1');
    client.write(
      'POST /books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{',
    );
    await until(() => hop.requests() === 1);
    client.destroy();
    await until(() => aborted);
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499, route: '/books' }]);
  });

  test('an api2 that answers before the upload is whole: its answer, and the connection goes on', async () => {
    const hop = await httpHop((_req, res) => void res.writeHead(413).end('too large'));
    const { app } = over(hop);
    const port = await listening(app);
    const client = connect(port, '127.0.0.1');
    let answers = '';
    client.on('data', (data) => (answers += data));
    client.write(
      'POST /books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 200000\r\n\r\n',
    );
    client.write('x'.repeat(100_000));
    await until(() => answers.includes('too large'));
    client.write('x'.repeat(100_000));
    client.write('GET /openapi.json HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    await until(() => answers.includes('HTTP/1.1 200 OK'));
    client.destroy();
  });

  test('an answer of 40 MB to a client that reads slowly is held back, and whole', async () => {
    const size = 40 * 1024 * 1024;
    let written = 0;
    const hop = await httpHop(async (_req, res) => {
      res.writeHead(200, { 'content-type': 'application/json', 'content-length': size });
      for (; written < size; written += 65_536)
        if (!res.write(Buffer.alloc(65_536, 'x'))) await once(res, 'drain');
      res.end();
    });
    const port = await listening(over(hop, { timeoutMs: 10_000 }).app);
    const asked = nodeRequest({ port, host: '127.0.0.1', path: '/books' }).end();
    const [response] = (await once(asked, 'response')) as [IncomingMessage];
    response.pause();
    await sleep(300);
    expect(written).toBeLessThan(size / 2);
    let received = 0;
    for await (const chunk of response) received += chunk.length;
    expect(received).toBe(size);
  });

  test('an answer that breaks off is broken off to the client too, with its cause in the log', async () => {
    const hop = await rawHop((socket) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\nhalf');
      setTimeout(() => socket.destroy(), 20);
    });
    const { app, completed } = over(hop);
    await expect(request(app).get('/books')).rejects.toThrow(/aborted/);
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ error: 'http_response_incomplete', nextHop: 'api2' }]);
    expect(hop.requests()).toBe(1);
  });
});

describe('failures of api2', () => {
  const gzipped = gzipSync('{}');

  test.each<[string, string, number, (socket: Socket) => void]>([
    ['resets the connection', 'connection_terminated', 502, (socket) => void socket.resetAndDestroy()],
    ['hangs', 'http_response_timeout', 504, () => {}],
    ['does not speak HTTP', 'http_protocol_error', 502, (socket) => void socket.write('SSH-2.0-OpenSSH\r\n')],
    [
      'sends gzip unasked',
      'http_response_content_coding',
      502,
      (socket) => {
        socket.write(
          `HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: ${gzipped.length}\r\n\r\n`,
        );
        socket.write(gzipped);
      },
    ],
    [
      'sends an error in gzip',
      'http_response_content_coding',
      502,
      (socket) => {
        socket.write(
          `HTTP/1.1 404 Not Found\r\ncontent-encoding: gzip\r\ncontent-length: ${gzipped.length}\r\n\r\n`,
        );
        socket.write(gzipped);
      },
    ],
    [
      'sends huge headers',
      'http_response_header_section_size',
      502,
      (socket) => {
        socket.write(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(100_000)}\r\n\r\n`);
      },
    ],
  ])('it %s: %s, %i', async (_what, type, status, misbehave) => {
    const { app, completed } = over(await rawHop(misbehave));
    for (const method of ['get', 'post'] as const) {
      const res = await request(app)[method]('/books');
      expect(res).toMatchObject({ status, type: 'application/problem+json' });
      expect(res.headers['proxy-status']).toBe(`api; error=${type}; next-hop=api2`);
      expect(res.body).toMatchObject({ status, code: type, requestId: res.headers['x-request-id'] });
      expect(completed().at(-1)).toMatchObject({
        error: type,
        level: 50,
        err: { stack: expect.any(String) },
      });
    }
  });

  test('nobody listens: 502 connection_refused, and 503 with Retry-After when the circuit is open', async () => {
    const { app } = over(`http://127.0.0.1:${await deadPort()}`);
    const first = await request(app).get('/books');
    expect(first.body).toMatchObject({ status: 502, code: 'connection_refused' });
    for (let i = 0; i < 16; i++) await request(app).post('/books').send({ title: 'a' });
    const open = await request(app).get('/books').expect(503).expect('retry-after', '1');
    expect(open.body).toMatchObject({ code: 'destination_unavailable' });
    expect(JSON.stringify(open.body)).not.toMatch(/127\.0\.0\.1|\bat /);
  });

  test('all connections are busy until the deadline: 503 connection_limit_reached', async () => {
    const { app } = over(await rawHop(() => {}), { connections: 1 });
    const answers = await Promise.all([request(app).post('/books'), request(app).post('/books')]);
    const [first, second] = answers.sort((a, b) => b.status - a.status) as [Response, Response];
    expect(first.status).toBe(504);
    expect(second.body).toMatchObject({ status: 503, code: 'connection_limit_reached' });
    expect(second.headers['retry-after']).toBe('1');
  });

  test.each([200, 301, 404, 418, 500, 503])(
    'a %i that it sent passes through, with its body',
    async (status) => {
      const hop = await httpHop((_req, res) => {
        res
          .writeHead(status, { 'content-type': 'text/x-own', 'retry-after': '7', 'set-cookie': 'a=b' })
          .end('own');
      });
      const res = await request(over(hop).app)
        .get('/books')
        .buffer(true)
        .parse((res, done) => {
          res.setEncoding('utf8').on('data', (text) => done(null, text));
        })
        .redirects(0)
        .ok(() => true);
      expect(res).toMatchObject({ status, body: 'own' });
      expect(res.headers).toMatchObject({
        'content-type': 'text/x-own',
        'retry-after': '7',
        'server-timing': expect.stringMatching(/^api2;dur=.*total;dur=/),
      });
      expect(res.headers).not.toHaveProperty('set-cookie');
      expect(res.headers).not.toHaveProperty('proxy-status');
    },
  );
});
