import { once } from 'node:events';
import { createServer } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import request, { type Response } from 'supertest';
import { MockAgent } from 'undici';
import { createTestApi } from '../../test/app-under-test';
import { closedPort, httpUpstream, rawUpstream, type StubUpstream } from '../../test/stub-upstream';

const TIMEOUT_MS = 400;
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

function createApi(hop: StubUpstream | string, options = {}, maxInFlight = 1024) {
  const api = createTestApi(
    typeof hop === 'string' ? hop : hop.origin,
    { timeoutMs: TIMEOUT_MS, ...options },
    maxInFlight,
  );
  cleanups.push(() => api.api2.close());
  if (typeof hop !== 'string') cleanups.push(() => hop.close());
  return api;
}

const respondingHop = (head: string, body: string | Buffer = '') =>
  rawUpstream((socket) => {
    socket.write(`HTTP/1.1 ${head}\r\n\r\n`);
    socket.write(body);
  });

describe('GET /hello when api2 responds', () => {
  test('returns the text of a 200 and none of its headers', async () => {
    const hop = await httpUpstream((_req, res) => {
      res.setHeader('set-cookie', 'a=b').setHeader('server', 'inner').setHeader('x-inner', '1').end('Grüße');
    });
    const { app, completed } = createApi(hop);
    const res = await request(app).get('/hello').expect(200, 'Grüße');
    expect(res.headers['content-type']).toBe('text/plain; charset=utf-8');
    expect(res.headers).not.toHaveProperty('set-cookie');
    expect(res.headers).not.toHaveProperty('server');
    expect(res.headers).not.toHaveProperty('x-inner');
    expect(res.headers).not.toHaveProperty('x-powered-by');
    expect(completed()).toMatchObject([
      { method: 'GET', route: '/hello', status: 200, nextHopStatus: 200, nextHopBytes: 7 },
    ]);
    expect(completed()[0]).not.toHaveProperty('error');
  });

  test('returns an empty text for a 204', async () => {
    const { app } = createApi(await respondingHop('204 No Content'));
    await request(app).get('/hello').expect(200, '');
  });

  test('decodes a character that is split across two packets', async () => {
    const body = Buffer.from('naïve ☕');
    const hop = await rawUpstream(async (socket) => {
      socket.setNoDelay(true);
      socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${body.length}\r\n\r\n`);
      socket.write(body.subarray(0, 3));
      setTimeout(() => socket.write(body.subarray(3)), 30);
    });
    await request(createApi(hop).app).get('/hello').expect(200, 'naïve ☕');
  });

  test.each([
    ['text/plain; charset=iso-8859-1', Buffer.from([0x63, 0x61, 0x66, 0xe9]), 'café'],
    ['text/plain; charset="utf-16le"', Buffer.from('café', 'utf16le'), 'café'],
    ['text/plain; charset=nonsense', Buffer.from('café'), 'café'],
    ['text/plain', Buffer.from('\ufeffcafé'), 'café'],
  ])('decodes a body of type %s', async (type, body, text) => {
    const hop = await respondingHop(
      `200 OK\r\ncontent-type: ${type}\r\ncontent-length: ${body.length}`,
      body,
    );
    await request(createApi(hop).app).get('/hello').expect(200, text);
  });

  test.each([503, 404, 500, 301, 304, 418])(
    'responds 500 with the status in its text to a %i',
    async (status) => {
      const hop = await httpUpstream((_req, res) => {
        res
          .writeHead(status, { location: 'http://127.0.0.1:1/', 'set-cookie': 'a=b' })
          .end(status === 304 ? '' : 'inner');
      });
      const { app, completed } = createApi(hop);
      const res = await request(app).get('/hello').expect(500, `Error from api2: ${status}`);
      expect(res.headers['content-type']).toBe('text/plain; charset=utf-8');
      expect(res.headers['proxy-status']).toBe(`api; received-status=${status}; next-hop=api2`);
      expect(res.headers).not.toHaveProperty('location');
      expect(hop.requests()).toBe(1);
      expect(completed()).toMatchObject([{ status: 500, nextHopStatus: status, level: 50 }]);
    },
  );

  test('reports the status of a 503 whose body never ends, and closes its connection', async () => {
    let closed = false;
    const hop = await rawUpstream((socket) => {
      socket.once('close', () => {
        closed = true;
      });
      socket.write('HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1000\r\n\r\nx');
    });
    const { app } = createApi(hop);
    await request(app).get('/hello').expect(500, 'Error from api2: 503');
    await until(() => closed);
  });

  test('reads a body without a length until the connection ends', async () => {
    const hop = await rawUpstream((socket) => void socket.end('HTTP/1.0 200 OK\r\n\r\nHello'));
    await request(createApi(hop).app).get('/hello').expect(200, 'Hello');
  });

  test('joins a body of ten thousand chunks in order', async () => {
    const parts = Array.from({ length: 10_000 }, (_, i) => String(i % 10));
    const hop = await rawUpstream((socket) => {
      socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n');
      socket.write(`${parts.map((part) => `1\r\n${part}\r\n`).join('')}0\r\n\r\n`);
    });
    const { app } = createApi(hop, { timeoutMs: 5000 });
    expect((await request(app).get('/hello').expect(200)).text).toBe(parts.join(''));
  });

  test('ignores informational responses before the final one', async () => {
    const hop = await respondingHop(
      '103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2',
      'ok',
    );
    await request(createApi(hop).app).get('/hello').expect(200, 'ok');
  });

  test('does not use surplus bytes after a response for the next one', async () => {
    const hop = await respondingHop(
      '200 OK\r\ncontent-length: 2',
      'okHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil',
    );
    const { app } = createApi(hop);
    for (let i = 0; i < 5; i++) {
      await request(app).get('/hello').expect(200, 'ok');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });

  test('returns a body of exactly 1 MiB and rejects one that is a byte larger', async () => {
    let size = 1024 * 1024;
    const hop = await httpUpstream((_req, res) => void res.end(Buffer.alloc(size, 'x')));
    const { app } = createApi(hop, { timeoutMs: 2000 });
    const res = await request(app).get('/hello').expect(200);
    expect(res.text).toHaveLength(size);
    size++;
    await request(app).get('/hello').expect(500, 'Internal error contacting api2');
  });
});

describe('GET /hello when api2 returns no usable response', () => {
  const hang = () => {};
  const drip = (socket: Socket) => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n');
    const timer = setInterval(() => socket.write('x'), 20);
    socket.once('close', () => clearInterval(timer));
  };
  const endless = (socket: Socket) => {
    socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n');
    const chunk = `10000\r\n${'x'.repeat(0x10000)}\r\n`;
    const fill = () => {
      while (!socket.destroyed && socket.write(chunk));
    };
    socket.on('drain', fill);
    fill();
  };
  const writeAndClose = (text: string) => (socket: Socket) => void socket.end(text);
  const writeOnly = (text: string) => (socket: Socket) => void socket.write(text);

  test.each<[string, string, (socket: Socket) => void]>([
    ['resets the connection', 'connection_terminated', (socket) => void socket.resetAndDestroy()],
    ['closes without a byte', 'connection_terminated', (socket) => void socket.end()],
    ['truncates its headers', 'connection_terminated', writeAndClose('HTTP/1.1 200 OK\r\ncontent-le')],
    [
      'truncates its body',
      'http_response_incomplete',
      writeAndClose('HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf'),
    ],
    [
      'truncates a chunked body',
      'http_response_incomplete',
      writeAndClose('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n'),
    ],
    [
      'truncates a chunked body sent with connection: close',
      'http_response_incomplete',
      writeAndClose(
        'HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n',
      ),
    ],
    [
      'resets the connection in a body without a length',
      'http_response_incomplete',
      (socket) => {
        socket.write('HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf');
        setTimeout(() => socket.resetAndDestroy(), 30);
      },
    ],
    [
      'switches protocols',
      'http_protocol_error',
      writeAndClose('HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n'),
    ],
    [
      'responds 100 twice',
      'http_protocol_error',
      writeAndClose('HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n'),
    ],
    [
      'responds with status 000',
      'http_protocol_error',
      writeOnly('HTTP/1.1 000 Nothing\r\ncontent-length: 0\r\n\r\n'),
    ],
    ['sends no response', 'http_response_timeout', hang],
    ['sends a body that trickles past the deadline', 'http_response_timeout', drip],
    ['sends an endless body', 'http_response_body_size', endless],
    [
      'declares a body of 50 MB',
      'http_response_body_size',
      writeOnly('HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\nx'),
    ],
    [
      'sends huge headers',
      'http_response_header_section_size',
      writeOnly(`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(100_000)}\r\n\r\n`),
    ],
    ['does not speak HTTP', 'http_protocol_error', writeOnly('SSH-2.0-OpenSSH_9.2\r\n')],
    [
      'sends two content-lengths',
      'http_protocol_error',
      writeOnly('HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc'),
    ],
    [
      'sends gzip that was not requested',
      'http_response_content_coding',
      (socket) => {
        const body = gzipSync('Hello World!');
        socket.write(`HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: ${body.length}\r\n\r\n`);
        socket.write(body);
      },
    ],
  ])('when it %s: %s', async (_description, type, misbehave) => {
    const { app, completed } = createApi(await rawUpstream(misbehave));
    const startedMs = performance.now();
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(performance.now() - startedMs).toBeLessThan(TIMEOUT_MS + 250);
    expect(res.headers['content-type']).toBe('text/plain; charset=utf-8');
    expect(res.headers['proxy-status']).toBe(`api; error=${type}; next-hop=api2`);
    expect(completed()).toMatchObject([{ status: 500, error: type, level: 50 }]);
    expect(completed()[0]?.err).toMatchObject({ message: expect.any(String), stack: expect.any(String) });
  });

  test('when it never responds and there is one connection: http_response_timeout, and the circuit opens', async () => {
    const { app, lines } = createApi(await rawUpstream(hang), { connections: 1, timeoutMs: 240 });
    for (let i = 0; i < 16; i++) {
      const res = await request(app).get('/hello').expect(500);
      expect(res.headers['proxy-status']).toBe('api; error=http_response_timeout; next-hop=api2');
    }
    expect(lines).toContainEqual(expect.objectContaining({ msg: 'circuit changed', circuit: 'open' }));
    expect(lines).not.toContainEqual(expect.objectContaining({ msg: 'request repeated' }));
  });

  test('when nothing listens on the port: connection_refused', async () => {
    const { app, completed } = createApi(`http://127.0.0.1:${await closedPort()}`);
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(res.headers['proxy-status']).toBe('api; error=connection_refused; next-hop=api2');
    expect(completed()[0]).toMatchObject({ error: 'connection_refused', err: { code: 'ECONNREFUSED' } });
  });

  test('when its name does not resolve: dns_error', async () => {
    const lookup = () =>
      Promise.reject(Object.assign(new Error('getaddrinfo ENOTFOUND'), { code: 'ENOTFOUND' }));
    const { app } = createApi('http://api2.invalid:8080', { lookup });
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(res.headers['proxy-status']).toBe('api; error=dns_error; next-hop=api2');
  });

  test('when its name is not resolved in time: dns_timeout', async () => {
    const { app } = createApi('http://api2.invalid:8080', { lookup: () => new Promise(() => {}) });
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(res.headers['proxy-status']).toBe('api; error=dns_timeout; next-hop=api2');
  });

  test('when its certificate is not trusted: tls_certificate_error', async () => {
    const error = Object.assign(new Error('self-signed certificate'), {
      code: 'DEPTH_ZERO_SELF_SIGNED_CERT',
    });
    const agent = new MockAgent();
    agent.get('http://api2:8080').intercept({ path: '/respond' }).replyWithError(error);
    const { app } = createApi('http://api2:8080', { factory: () => agent.get('http://api2:8080') });
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(res.headers['proxy-status']).toBe('api; error=tls_certificate_error; next-hop=api2');
  });

  test('when the circuit is open: destination_unavailable, immediately', async () => {
    const { app, lines } = createApi(`http://127.0.0.1:${await closedPort()}`);
    for (let i = 0; i < 16; i++) await request(app).get('/hello').expect(500);
    const startedMs = performance.now();
    const res = await request(app).get('/hello').expect(500, 'Internal error contacting api2');
    expect(performance.now() - startedMs).toBeLessThan(100);
    expect(res.headers['proxy-status']).toBe('api; error=destination_unavailable; next-hop=api2');
    expect(lines).toContainEqual(expect.objectContaining({ msg: 'circuit changed', circuit: 'open' }));
  });

  test('when all connections are busy until the deadline: 503 connection_limit_reached', async () => {
    const { app } = createApi(await rawUpstream(hang), { connections: 1 });
    const responses = await Promise.all([request(app).get('/hello'), request(app).get('/hello')]);
    const [first, second] = responses.sort((a, b) => a.status - b.status) as [Response, Response];
    expect(first.status).toBe(500);
    expect(second.status).toBe(503);
    expect(second.headers['retry-after']).toBe('1');
    expect(second.headers['proxy-status']).toBe('api; error=connection_limit_reached; next-hop=api2');
    expect(second.type).toBe('application/problem+json');
    expect(second.body).toMatchObject({ status: 503, code: 'connection_limit_reached' });
  });
});

describe('requests to api', () => {
  test('responds to HEAD with the headers of GET and no body', async () => {
    const { app } = createApi(await httpUpstream((_req, res) => void res.end('Hello')));
    const res = await request(app).head('/hello').expect(200);
    expect(res.headers['content-length']).toBe('5');
    expect(res.text).toBeUndefined();
  });

  test.each(['post', 'put', 'delete', 'patch', 'options'] as const)(
    'responds 405 with Allow to %s',
    async (method) => {
      const { app } = createApi('http://127.0.0.1:9');
      const res = await request(app)[method]('/hello').expect(405);
      expect(res.headers.allow).toBe('GET, HEAD');
      expect(res.type).toBe('application/problem+json');
      expect(res.body).toMatchObject({
        title: 'Method Not Allowed',
        status: 405,
        code: 'method_not_allowed',
        requestId: res.headers['x-request-id'],
      });
    },
  );

  test.each(['/page', '/nothing', '/hello/more', '/respond', '/%zz'])(
    'responds with a problem document to the unmatched path %s',
    async (path) => {
      const { app, completed } = createApi('http://127.0.0.1:9');
      const res = await request(app).get(path);
      expect([400, 404]).toContain(res.status);
      expect(res.type).toBe('application/problem+json');
      expect(completed()).toMatchObject([{ route: 'unmatched', status: res.status }]);
    },
  );

  test('forwards only the request id and the tracing headers to api2', async () => {
    let rawHeaders: string[] = [];
    const { app } = createApi(
      await httpUpstream((req, res) => {
        rawHeaders = req.rawHeaders;
        res.end();
      }),
    );
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const forwarded = { 'x-request-id': 'abc-1', traceparent, tracestate: 'a=1', baggage: 'b=2' };
    const dropped = {
      cookie: 'c=d',
      authorization: 'Bearer x',
      'x-forwarded-for': '1.2.3.4',
      'user-agent': 'test',
    };
    await request(app)
      .get('/hello')
      .set({ ...forwarded, ...dropped })
      .expect(200)
      .expect('x-request-id', 'abc-1');
    const names = rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
    expect(names.sort()).toEqual([
      'baggage',
      'connection',
      'host',
      'traceparent',
      'tracestate',
      'x-request-id',
    ]);
    expect(rawHeaders).toEqual(expect.arrayContaining(['abc-1', traceparent, 'a=1', 'b=2']));
  });

  test.each(['', 'has space', 'a'.repeat(129), 'semi;colon', 'ümlaut'])(
    'replaces the invalid request id %j',
    async (id) => {
      const { app } = createApi(await httpUpstream((req, res) => void res.end(req.headers['x-request-id'])));
      const res = await request(app)
        .get('/hello')
        .set('x-request-id', Buffer.from(id).toString('latin1'))
        .expect(200);
      expect(res.headers['x-request-id']).toMatch(/^[A-Za-z0-9._-]{1,128}$/);
      expect(res.text).toBe(res.headers['x-request-id']);
    },
  );

  test('responds 503 with Retry-After immediately when more than MAX_IN_FLIGHT requests are in flight', async () => {
    const { app, completed } = createApi(await rawUpstream(() => {}), { timeoutMs: 1000 }, 2);
    const server = createServer(app).listen(0);
    await once(server, 'listening');
    cleanups.push(async () => server.close());
    const responses = await Promise.all([1, 2, 3].map(() => timed(request(server).get('/hello'))));
    const rejected = responses.filter(({ res }) => res.status === 503);
    expect(rejected).toHaveLength(1);
    expect(rejected[0]?.ms).toBeLessThan(500);
    expect(rejected[0]?.res.headers['retry-after']).toBe('1');
    expect(rejected[0]?.res.headers['proxy-status']).toBe('api; error=connection_limit_reached');
    expect(completed()).toContainEqual(
      expect.objectContaining({ status: 503, error: 'connection_limit_reached' }),
    );
  });

  test('cancels the request to api2 when the client disconnects', async () => {
    let closed = false;
    const hop = await rawUpstream((socket) => void socket.once('close', () => (closed = true)));
    const { app, completed } = createApi(hop, { timeoutMs: 10_000 });
    const server = createServer(app).listen(0);
    await once(server, 'listening');
    cleanups.push(async () => server.close());
    const client = connect((server.address() as AddressInfo).port);
    client.write('GET /hello HTTP/1.1\r\nhost: a\r\n\r\n');
    await until(() => hop.requests() === 1);
    client.destroy();
    await until(() => closed);
    expect(completed()).toMatchObject([
      { status: 499, route: '/hello', nextHop: 'api2', nextHopMs: expect.any(Number) },
    ]);
  });
});

describe('with COLLAPSE on', () => {
  async function startCoalescingApi(hop: StubUpstream, timeoutMs = 2000) {
    const api = createApi(hop, { collapse: true, timeoutMs });
    const server = createServer(api.app).listen(0);
    await once(server, 'listening');
    cleanups.push(async () => server.close());
    return { ...api, server, port: (server.address() as AddressInfo).port };
  }

  test('concurrent requests share one exchange, each with its own request id and log line', async () => {
    let forwardedId: unknown;
    const hop = await httpUpstream((req, res) => {
      forwardedId = req.headers['x-request-id'];
      setTimeout(() => res.end('shared'), 100);
    });
    const { server, completed } = await startCoalescingApi(hop);
    const ids = Array.from({ length: 20 }, (_, i) => `caller-${i}`);
    const responses = await Promise.all(
      ids.map((id) => request(server).get('/hello').set('x-request-id', id)),
    );
    expect(responses.map(({ text, headers }) => `${text} ${headers['x-request-id']}`)).toEqual(
      ids.map((id) => `shared ${id}`),
    );
    expect(hop.requests()).toBe(1);
    expect(ids).toContain(forwardedId);
    expect(
      completed()
        .map(({ requestId }) => requestId)
        .sort(),
    ).toEqual([...ids].sort());
    for (const line of completed())
      expect(line).toMatchObject({ nextHopStatus: 200, nextHopMs: expect.any(Number) });
    await request(server).get('/hello').expect(200);
    expect(hop.requests()).toBe(2);
  });

  test('a failed exchange fails all requests that share it', async () => {
    const hop = await rawUpstream(() => {});
    const { server, completed } = await startCoalescingApi(hop, 200);
    const responses = await Promise.all([1, 2, 3].map(() => request(server).get('/hello')));
    for (const { status, text } of responses)
      expect([status, text]).toEqual([500, 'Internal error contacting api2']);
    expect(completed()).toHaveLength(3);
    for (const line of completed()) expect(line).toMatchObject({ error: 'http_response_timeout' });
    // The first attempt and its hedge.
    expect(hop.requests()).toBe(2);
  });

  test('the exchange is cancelled only when all its clients have disconnected', async () => {
    let closed = 0;
    let respond = () => {};
    const hop = await httpUpstream((_req, res) => {
      res.on('close', () => closed++);
      respond = () => res.end('ok');
    });
    const { server, port, completed } = await startCoalescingApi(hop, 8000);
    const connectClient = () => {
      const client = connect(port);
      client.write('GET /hello HTTP/1.1\r\nhost: a\r\n\r\n');
      return client;
    };
    const first = connectClient();
    await until(() => hop.requests() === 1);
    const second = request(server)
      .get('/hello')
      .then(({ text }) => text);
    await new Promise((resolve) => setTimeout(resolve, 50));
    first.destroy();
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499 }]);
    expect(closed).toBe(0);
    respond();
    expect(await second).toBe('ok');
    const clients = [connectClient(), connectClient()];
    await until(() => hop.requests() === 2);
    await new Promise((resolve) => setTimeout(resolve, 50));
    closed = 0;
    clients[0]?.destroy();
    await until(() => completed().length === 3);
    expect(closed).toBe(0);
    clients[1]?.destroy();
    await until(() => closed === 1);
    expect(hop.requests()).toBe(2);
  });
});

async function timed<T>(work: PromiseLike<T>) {
  const startedMs = performance.now();
  return { res: await work, ms: performance.now() - startedMs };
}

async function until(condition: () => boolean) {
  for (let i = 0; i < 200 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(condition()).toBe(true);
}
