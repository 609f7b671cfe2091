import { once } from 'node:events';
import { createServer, type IncomingMessage, request as nodeRequest, type ServerResponse } from 'node:http';
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

function over(hop: StubHop | string, options = {}, maxInFlight = 1024) {
  const origin = typeof hop === 'string' ? hop : hop.origin;
  const api = apiOver(origin, { timeoutMs: TIMEOUT_MS, ...options }, maxInFlight);
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
      .type('json')
      .send('"body"');
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
      body: '"body"',
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

describe('uploads', () => {
  const head = (fields: string) =>
    `POST /books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${fields}\r\n\r\n`;

  function upload(port: number, headers: Record<string, string> = {}) {
    const sent = nodeRequest({
      port,
      host: '127.0.0.1',
      method: 'POST',
      path: '/books',
      headers: { 'content-type': 'application/json', ...headers },
    });
    return { sent, responded: once(sent, 'response') as Promise<[IncomingMessage]> };
  }

  test('a slow upload opens no exchange until it is complete, however long it takes, and arrives unchanged', async () => {
    let received = '';
    const hop = await httpHop(async (req, res) => {
      for await (const chunk of req) received += chunk;
      res.writeHead(201, { location: '/books/1' }).end('done');
    });
    const { sent, responded } = upload(await listening(over(hop).app));
    for (let i = 0; i < 9; i++) {
      sent.write(String(i).repeat(10_000));
      await sleep(TIMEOUT_MS / 4);
      expect(hop.requests()).toBe(0);
    }
    sent.end();
    const [response] = await responded;
    response.resume();
    expect(response.statusCode).toBe(201);
    expect(received).toBe(Array.from({ length: 9 }, (_, i) => String(i).repeat(10_000)).join(''));
  });

  test.each([
    ['a declared length over 100 kB', head('content-length: 100001'), 413, 'content_too_large'],
    [
      'chunks of more than 100 kB',
      `${head('transfer-encoding: chunked')}186a1\r\n${'x'.repeat(100_001)}\r\n0\r\n\r\n`,
      413,
      'content_too_large',
    ],
    ['another media type', head('content-length: 5').replace('json', 'xml'), 415, 'unsupported_media_type'],
    ['a content coding', head('content-length: 5\r\ncontent-encoding: gzip'), 415, 'unsupported_media_type'],
  ])('%s is rejected without a request to api2', async (_what, bytes, status, code) => {
    const hop = await httpHop((_req, res) => void res.end());
    const client = connect(await listening(over(hop).app), '127.0.0.1', () => client.write(bytes));
    let response = '';
    client.on('data', (data) => (response += data));
    await until(() => response.includes(`"code":"${code}"`));
    expect(response).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(hop.requests()).toBe(0);
    client.destroy();
  });

  test('after a rejected upload the connection serves the next request', async () => {
    const hop = await httpHop((_req, res) => void res.end('{}'));
    const client = connect(await listening(over(hop).app), '127.0.0.1');
    let responses = '';
    client.on('data', (data) => (responses += data));
    client.write(head('content-length: 200000'));
    await until(() => responses.includes('content_too_large'));
    client.write('x'.repeat(200_000));
    client.write('GET /books HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    await until(() => responses.includes('HTTP/1.1 200 OK'));
    client.destroy();
  });

  test('an api2 that dies while it reads the body: 502; one that stops reading: 504', async () => {
    const ends: ((socket: Socket) => void)[] = [
      (socket) => socket.destroy(),
      (socket) => void socket.pause(),
    ];
    for (const [i, status] of [502, 504].entries()) {
      const hop = await httpHop((req) => void req.once('data', () => ends[i]?.(req.socket)));
      const res = await request(over(hop).app)
        .post('/books')
        .type('json')
        .send(`"${'x'.repeat(99_000)}"`);
      expect(res.status).toBe(status);
    }
  });

  test('a client that leaves in the middle of an upload is logged with 499, and api2 is not called', async () => {
    const hop = await httpHop((_req, res) => void res.end());
    const { app, completed } = over(hop);
    const client = connect(await listening(app), '127.0.0.1');
    client.write(`${head('content-length: 1000')}{`);
    await sleep(50);
    client.destroy();
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499, route: '/books' }]);
    expect(hop.requests()).toBe(0);
  });

  test('requests whose bodies are still arriving do not count towards MAX_IN_FLIGHT, those with complete bodies do', async () => {
    const hop = await httpHop((req, res) => {
      if (req.method === 'GET') res.end('{}');
    });
    const port = await listening(over(hop, { timeoutMs: 5000 }, 3).app);
    const clients = Array.from({ length: 10 }, () => connect(port, '127.0.0.1'));
    let responses = '';
    for (const client of clients) {
      client.write(head('content-length: 2'));
      client.on('data', (data) => (responses += data));
    }
    await sleep(100);
    expect((await fetch(`http://127.0.0.1:${port}/books`)).status).toBe(200);
    for (const client of clients) client.write('{}');
    await until(() => responses.split('HTTP/1.1 503').length - 1 === 7);
    expect(hop.requests()).toBe(1 + 3);
    for (const client of clients) client.destroy();
  });
});

describe('responses to slow clients', () => {
  // The response of a pipelined request waits in memory for the one before it.
  async function behindUnanswered(answer: (res: ServerResponse) => void, pipelined: number, connections = 2) {
    let hasEnded = 0;
    const hop = await httpHop((req, res) => {
      if (req.url === '/books?hang') return;
      res.on('finish', () => hasEnded++);
      answer(res);
    });
    const api = over(hop, { timeoutMs: 10_000, connections });
    const client = connect(await listening(api.app), '127.0.0.1').on('error', () => {});
    let responses = '';
    client.on('data', (data) => (responses += data.toString('latin1')));
    const paths = ['/books?hang', ...new Array<string>(pipelined).fill('/books')];
    client.write(paths.map((path) => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`).join(''));
    return { ...api, client, ended: () => hasEnded, responses: () => responses };
  }

  test('a response of up to 1 MiB is read completely, and its connection to api2 is free again', async () => {
    const { ended, responses, client } = await behindUnanswered(
      (res) => void res.end(Buffer.alloc(1_000_000)),
      1,
    );
    await until(() => ended() === 1);
    expect(responses()).toBe('');
    client.destroy();
  });

  test('one of 8 MB is held back after about 1 MiB', async () => {
    let written = 0;
    const size = 8 * 1024 * 1024;
    const { ended, client } = await behindUnanswered(async (res) => {
      res.writeHead(200, { 'content-length': size });
      for (; written < size && !res.destroyed; written += 65_536)
        if (!res.write(Buffer.alloc(65_536))) await once(res, 'drain');
    }, 1);
    await sleep(500);
    expect(written).toBeGreaterThan(1024 * 1024);
    expect(written).toBeLessThan(size);
    expect(ended()).toBe(0);
    client.destroy();
  });

  test('above 64 MiB in memory, the connection with the most unsent bytes is closed, and others are served', async () => {
    const { app, client, completed } = await behindUnanswered(
      (res) => void res.end(Buffer.alloc(1_000_000)),
      80,
      16,
    );
    await once(client, 'close');
    await until(() => completed().some(({ error }) => error === 'slow_client'));
    expect((await request(app).get('/books')).status).toBe(200);
  });
});

describe('streaming', () => {
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
