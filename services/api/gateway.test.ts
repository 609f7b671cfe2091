import { once } from 'node:events';
import { createServer, type IncomingMessage, request as nodeRequest, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import request, { type Response } from 'supertest';
import { createTestApi } from '../../test/app-under-test';
import { closedPort, httpUpstream, rawUpstream, type StubUpstream } from '../../test/stub-upstream';

const TIMEOUT_MS = 400;
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

function createApi(hop: StubUpstream | string, options = {}, maxInFlight = 1024) {
  const origin = typeof hop === 'string' ? hop : hop.origin;
  const api = createTestApi(origin, { timeoutMs: TIMEOUT_MS, ...options }, maxInFlight);
  cleanups.push(() => api.api2.close());
  if (typeof hop !== 'string') cleanups.push(() => hop.close());
  return api;
}

async function listen(app: Parameters<typeof createServer>[1]) {
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

describe('requests to api2', () => {
  test('have the method, path, query and body of the client, and only the listed headers', async () => {
    let received:
      | { method?: string | undefined; url?: string | undefined; names: string[]; body: string }
      | undefined;
    const hop = await httpUpstream(async (req, res) => {
      const names = req.rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
      let body = '';
      for await (const chunk of req) body += chunk;
      received = { method: req.method, url: req.url, names: names.sort(), body };
      res.end();
    });
    const { app } = createApi(hop);
    const forwarded = {
      accept: 'a/b',
      'if-match': '"a"',
      'if-none-match': '"b"',
      'idempotency-key': 'k',
      baggage: 'x=y',
    };
    const dropped = {
      cookie: 'a=b',
      authorization: 'Bearer x',
      'x-forwarded-for': '1.2.3.4',
      'accept-encoding': 'gzip',
      te: 'trailers',
    };
    await request(app)
      .put('/books/7?a=%2F&b')
      .set({ ...forwarded, ...dropped, 'x-request-id': 'r-1' })
      .type('json')
      .send('"body"');
    expect(received).toEqual({
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

  test('headers named by Connection are dropped from requests and responses', async () => {
    let received: IncomingMessage['headers'] = {};
    const hop = await httpUpstream((req, res) => {
      received = req.headers;
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
    const { app } = createApi(hop);
    const headers = { connection: 'close, If-Match,traceparent', 'if-match': '"a"', accept: 'a/b' };
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const res = await request(app)
      .get('/books/1')
      .set({ ...headers, traceparent });
    expect(received).not.toHaveProperty('if-match');
    expect(received).not.toHaveProperty('traceparent');
    expect(received).toHaveProperty('accept', 'a/b');
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
  ])('%s: responds %i and never reaches another path of api2 than /books', async (line, status) => {
    const paths: unknown[] = [];
    const hop = await httpUpstream((req, res) => {
      paths.push(req.url?.replace(/\?.*/, ''));
      res.end();
    });
    const port = await listen(createApi(hop).app);
    const client = connect(port, '127.0.0.1', () =>
      client.write(`${line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n`),
    );
    let response = '';
    for await (const data of client) response += data;
    expect(Number(response.split(' ')[1])).toBe(status);
    expect(paths).toEqual(status === 200 ? ['/books'] : []);
  });

  test.each(['POST', 'PUT', 'DELETE'])('a %s is never retried or hedged', async (method) => {
    const methods: unknown[] = [];
    let fail = (socket: Socket) => void socket.destroy();
    const hop = await httpUpstream((req) => {
      methods.push(req.method);
      fail(req.socket);
    });
    const { app } = createApi(hop);
    const send = () =>
      request(app)
        [method.toLowerCase() as 'post'](method === 'POST' ? '/books' : '/books/1')
        .type('json')
        .send('{}');
    expect((await send()).body).toMatchObject({ status: 502, code: 'connection_terminated' });
    fail = () => {};
    expect((await send()).body).toMatchObject({ status: 504, code: 'http_response_timeout' });
    expect(methods).toEqual([method, method]);
  });

  test('a GET is retried after a closed connection and hedged when the response is slow', async () => {
    let requests = 0;
    const hop = await httpUpstream((req, res) => {
      requests++;
      if (requests === 1) req.socket.destroy();
      else if (requests !== 3) res.end('{}');
    });
    const { app } = createApi(hop);
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

  test('a slow upload is forwarded unchanged only when it is complete, even past API2_TIMEOUT_MS', async () => {
    let received = '';
    const hop = await httpUpstream(async (req, res) => {
      for await (const chunk of req) received += chunk;
      res.writeHead(201, { location: '/books/1' }).end('done');
    });
    const { sent, responded } = upload(await listen(createApi(hop).app));
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
  ])('%s is rejected without a request to api2', async (_description, bytes, status, code) => {
    const hop = await httpUpstream((_req, res) => void res.end());
    const client = connect(await listen(createApi(hop).app), '127.0.0.1', () => client.write(bytes));
    let response = '';
    client.on('data', (data) => (response += data));
    await until(() => response.includes(`"code":"${code}"`));
    expect(response).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(hop.requests()).toBe(0);
    client.destroy();
  });

  test('the connection serves the next request after a rejected upload', async () => {
    const hop = await httpUpstream((_req, res) => void res.end('{}'));
    const client = connect(await listen(createApi(hop).app), '127.0.0.1');
    let responses = '';
    client.on('data', (data) => (responses += data));
    client.write(head('content-length: 200000'));
    await until(() => responses.includes('content_too_large'));
    client.write('x'.repeat(200_000));
    client.write('GET /books HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n');
    await until(() => responses.includes('HTTP/1.1 200 OK'));
    client.destroy();
  });

  test('responds 502 when api2 closes the connection during the body, and 504 when it stops reading', async () => {
    const misbehaviours: ((socket: Socket) => void)[] = [
      (socket) => socket.destroy(),
      (socket) => void socket.pause(),
    ];
    for (const [i, status] of [502, 504].entries()) {
      const hop = await httpUpstream((req) => void req.once('data', () => misbehaviours[i]?.(req.socket)));
      const res = await request(createApi(hop).app)
        .post('/books')
        .type('json')
        .send(`"${'x'.repeat(99_000)}"`);
      expect(res.status).toBe(status);
    }
  });

  test('a client that disconnects during an upload is logged with 499, and api2 is not called', async () => {
    const hop = await httpUpstream((_req, res) => void res.end());
    const { app, completed } = createApi(hop);
    const client = connect(await listen(app), '127.0.0.1');
    client.write(`${head('content-length: 1000')}{`);
    await sleep(50);
    client.destroy();
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499, route: '/books' }]);
    expect(hop.requests()).toBe(0);
  });

  test('requests count towards MAX_IN_FLIGHT only once their body has arrived', async () => {
    const hop = await httpUpstream((req, res) => {
      if (req.method === 'GET') res.end('{}');
    });
    const port = await listen(createApi(hop, { timeoutMs: 5000 }, 3).app);
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
    await until(() => hop.requests() === 1 + 3);
    for (const client of clients) client.destroy();
  });
});

describe('responses to slow clients', () => {
  // Sends pipelined requests after one that never gets a response, so that their responses are buffered in memory.
  async function pipelineBehindHang(
    respond: (res: ServerResponse) => void,
    pipelined: number,
    connections = 2,
  ) {
    let finished = 0;
    const hop = await httpUpstream((req, res) => {
      if (req.url === '/books?hang') return;
      res.on('finish', () => finished++);
      respond(res);
    });
    const api = createApi(hop, { timeoutMs: 10_000, connections });
    const client = connect(await listen(api.app), '127.0.0.1').on('error', () => {});
    let responses = '';
    client.on('data', (data) => (responses += data.toString('latin1')));
    const paths = ['/books?hang', ...new Array<string>(pipelined).fill('/books')];
    client.write(paths.map((path) => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`).join(''));
    return { ...api, client, finished: () => finished, responses: () => responses };
  }

  test('a response of up to 1 MiB is read completely, which frees the connection to api2', async () => {
    const { finished, responses, client } = await pipelineBehindHang(
      (res) => void res.end(Buffer.alloc(1_000_000)),
      1,
    );
    await until(() => finished() === 1);
    expect(responses()).toBe('');
    client.destroy();
  });

  test('a response of 64 MiB is paused long before its end', async () => {
    let written = 0;
    const size = 64 * 1024 * 1024;
    const { finished, client } = await pipelineBehindHang(async (res) => {
      res.writeHead(200, { 'content-length': size });
      for (; written < size && !res.destroyed; written += 65_536)
        if (!res.write(Buffer.alloc(65_536))) await once(res, 'drain');
    }, 1);
    await sleep(500);
    expect(written).toBeGreaterThan(1024 * 1024);
    expect(written).toBeLessThan(size);
    expect(finished()).toBe(0);
    client.destroy();
  });

  test('beyond 64 MiB of buffered responses, the connection of the oldest waiting request is closed, and others are served', async () => {
    const { app, client, completed } = await pipelineBehindHang(
      (res) => void res.end(Buffer.alloc(1_000_000)),
      60,
      16,
    );
    await sleep(500);
    const laterClient = connect(await listen(app), '127.0.0.1').on('error', () => {});
    const paths = ['/books?hang', ...new Array<string>(10).fill('/books')];
    laterClient.write(paths.map((path) => `GET ${path} HTTP/1.1\r\nhost: a\r\n\r\n`).join(''));
    await once(client, 'close');
    await until(() => completed().some(({ error }) => error === 'slow_client'));
    expect((await request(app).get('/books')).status).toBe(200);
    expect(laterClient.destroyed).toBe(false);
    laterClient.destroy();
  });
});

describe('streaming', () => {
  test('back-pressure from a slow client reaches api2, and a response of 40 MiB arrives complete', async () => {
    const size = 40 * 1024 * 1024;
    let written = 0;
    const hop = await httpUpstream(async (_req, res) => {
      res.writeHead(200, { 'content-type': 'application/json', 'content-length': size });
      for (; written < size; written += 65_536)
        if (!res.write(Buffer.alloc(65_536, 'x'))) await once(res, 'drain');
      res.end();
    });
    const port = await listen(createApi(hop, { timeoutMs: 10_000 }).app);
    const clientRequest = nodeRequest({ port, host: '127.0.0.1', path: '/books' }).end();
    const [response] = (await once(clientRequest, 'response')) as [IncomingMessage];
    response.pause();
    await sleep(300);
    expect(written).toBeLessThan(size / 2);
    let received = 0;
    for await (const chunk of response) received += chunk.length;
    expect(received).toBe(size);
  });

  test('a truncated response is truncated for the client too, and its cause is logged', async () => {
    const hop = await rawUpstream((socket) => {
      socket.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\nhalf');
      setTimeout(() => socket.destroy(), 20);
    });
    const { app, completed } = createApi(hop);
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
    ['sends no response', 'http_response_timeout', 504, () => {}],
    ['does not speak HTTP', 'http_protocol_error', 502, (socket) => void socket.write('SSH-2.0-OpenSSH\r\n')],
    [
      'sends gzip that was not requested',
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
      'sends a gzip error response',
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
  ])('when it %s: %s, %i', async (_description, type, status, misbehave) => {
    const { app, completed } = createApi(await rawUpstream(misbehave));
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

  test('a response that stalls before its body leaves no header of api2 in the problem document', async () => {
    const upstream = await rawUpstream((socket) => {
      socket.write('HTTP/1.1 201 Created\r\nlocation: /books/7\r\netag: "a"\r\ncontent-length: 2\r\n\r\n');
    });
    const { app } = createApi(upstream);
    const res = await request(app).post('/books').type('json').send('{}').expect(504);
    expect(res.headers).not.toHaveProperty('location');
    expect(res.headers).not.toHaveProperty('etag');
    expect(Number(res.headers['content-length'])).toBe(res.text.length);
  });

  test('when nothing listens: 502 connection_refused, then 503 with Retry-After once the circuit is open', async () => {
    const { app } = createApi(`http://127.0.0.1:${await closedPort()}`);
    const first = await request(app).get('/books');
    expect(first.body).toMatchObject({ status: 502, code: 'connection_refused' });
    for (let i = 0; i < 16; i++) await request(app).post('/books').send({ title: 'a' });
    const open = await request(app).get('/books').expect(503).expect('retry-after', '1');
    expect(open.body).toMatchObject({ code: 'destination_unavailable' });
    expect(JSON.stringify(open.body)).not.toMatch(/127\.0\.0\.1|\bat /);
  });

  test('when all connections are busy until the deadline: 503 connection_limit_reached', async () => {
    const { app } = createApi(await rawUpstream(() => {}), { connections: 1 });
    const responses = await Promise.all([request(app).get('/books'), request(app).get('/books')]);
    const [first, second] = responses.sort((a, b) => b.status - a.status) as [Response, Response];
    expect(first.status).toBe(504);
    expect(second.body).toMatchObject({ status: 503, code: 'connection_limit_reached' });
    expect(second.headers['retry-after']).toBe('1');
  });

  test.each([200, 301, 404, 418, 500, 503])('a %i from api2 passes through with its body', async (status) => {
    const hop = await httpUpstream((_req, res) => {
      res
        .writeHead(status, { 'content-type': 'text/x-own', 'retry-after': '7', 'set-cookie': 'a=b' })
        .end('own');
    });
    const res = await request(createApi(hop).app)
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
  });
});
