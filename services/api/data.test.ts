import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import request from 'supertest';
import { createTestApi, type TestNextHopOptions } from '../../test/app-under-test';
import { closedPort, httpUpstream, rawUpstream, type StubUpstream } from '../../test/stub-upstream';

const TIMEOUT_MS = 400;
const JSON_TYPE = { 'content-type': 'application/json' };
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

function createApi(hop: StubUpstream | string, options: TestNextHopOptions = {}) {
  const origin = typeof hop === 'string' ? hop : hop.origin;
  const api = createTestApi(origin, { timeoutMs: TIMEOUT_MS }, 1024, options);
  cleanups.push(() => api.external.close());
  if (typeof hop !== 'string') cleanups.push(() => hop.close());
  return api;
}

/**
 * Starts a stub of the external API. A test can replace its listener with `setListener`. The deadline is long, because
 * a hedge would be another request.
 */
async function startExternal(
  initialListener: (req: IncomingMessage, res: ServerResponse) => void,
  options: TestNextHopOptions = {},
) {
  let listener = initialListener;
  const requests: IncomingMessage[] = [];
  const hop = await httpUpstream((req, res) => {
    requests.push(req);
    listener(req, res);
  });
  const { app, completed, lines } = createApi(hop, { timeoutMs: 4000, ...options });
  const get = () => request(app).get('/data').buffer(true);
  return {
    app,
    get,
    requests,
    completed,
    lines,
    setListener: (next: typeof initialListener) => (listener = next),
  };
}

const json =
  (text: string, headers: Record<string, string> = {}) =>
  (_req: unknown, res: ServerResponse) =>
    void res.writeHead(200, { ...JSON_TYPE, ...headers }).end(text);
const respondWithStatus = (status: number) => (_req: unknown, res: ServerResponse) =>
  void res.writeHead(status).end();
const closeConnection = (req: IncomingMessage) => void req.socket.destroy();

describe('GET /data when the external API responds with JSON', () => {
  test('relays the bytes of the body unchanged, as application/json', async () => {
    const text = '{ "n": 12345678901234567890.10,\n "ü": "☕" }';
    const { get, completed } = await startExternal(
      json(text, {
        'content-type': 'application/problem+json; charset=utf-8',
        'set-cookie': 'a=b',
        server: 'x',
      }),
    );
    const res = await get().expect(200);
    expect(res.text).toBe(text);
    expect(res.headers['content-type']).toBe('application/json');
    expect(res.headers['server-timing']).toMatch(/^external;dur=[\d.]+, total;dur=[\d.]+$/);
    expect(res.headers['cache-status']).toBe('api; fwd=uri-miss; fwd-status=200');
    expect(res.headers).not.toHaveProperty('set-cookie');
    expect(res.headers).not.toHaveProperty('server');
    expect(completed()).toMatchObject([
      {
        route: '/data',
        nextHop: 'external',
        nextHopStatus: 200,
        nextHopBytes: Buffer.byteLength(text),
        nextHopMs: expect.any(Number),
      },
    ]);
  });

  test('forwards nothing that the client sends, neither headers nor query', async () => {
    const { app, requests } = await startExternal(json('{}'));
    const headers = {
      cookie: 'a=b',
      authorization: 'Bearer x',
      'x-request-id': 'r-1',
      traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
      baggage: 'c=d',
      accept: 'text/html',
      'if-none-match': '"a"',
    };
    await request(app).get('/data?url=http://127.0.0.1:9/&path=/x').set(headers).expect(200);
    const names = requests[0]?.rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
    expect(names?.sort()).toEqual(['accept', 'accept-encoding', 'connection', 'host']);
    expect(requests[0]).toMatchObject({
      url: '/data.json',
      headers: { accept: 'application/json', 'accept-encoding': 'identity' },
    });
  });

  test('logs the data at level debug, truncated to 1 kB without a partial character', async () => {
    const { get, lines } = await startExternal(json(`"${'é'.repeat(2000)}"`));
    await get().expect(200);
    const { data } = lines.find(({ msg }) => msg === 'data relayed') as unknown as { data: string };
    expect(data).toBe(`"${'é'.repeat(499)}`);
  });

  test('responds to HEAD with the headers of GET and no body, and to other methods with 405', async () => {
    const { app } = await startExternal(json('{"a":1}'));
    const head = await request(app).head('/data').expect(200);
    expect(head.headers['content-length']).toBe('7');
    const post = await request(app).post('/data').expect(405).expect('allow', 'GET, HEAD');
    expect(post.body.code).toBe('method_not_allowed');
  });
});

describe('GET /data when the external API returns no usable response', () => {
  const endless = (_req: unknown, res: ServerResponse) => {
    res.writeHead(200, JSON_TYPE);
    const fill = () => {
      while (!res.destroyed && res.write('x'.repeat(65_536)));
    };
    res.on('drain', fill);
    fill();
  };

  test.each<[string, string, (req: IncomingMessage, res: ServerResponse) => void]>([
    ['HTML', 'unexpected_content', json('<html>', { 'content-type': 'text/html' })],
    ['JSON as text/plain', 'unexpected_content', json('{}', { 'content-type': 'text/plain' })],
    ['truncated JSON', 'unexpected_content', json('{"a":')],
    [
      'JSON that is not UTF-8',
      'unexpected_content',
      (_req, res) => void res.writeHead(200, JSON_TYPE).end(Buffer.from('"\xff"', 'latin1')),
    ],
    ['an empty body', 'unexpected_content', json('')],
    ['a body of 2 MiB', 'http_response_body_size', json(`"${'x'.repeat(2 ** 21)}"`)],
    ['an endless body', 'http_response_body_size', endless],
    [
      'a gzip body',
      'http_response_content_coding',
      (_req, res) =>
        void res.writeHead(200, { ...JSON_TYPE, 'content-encoding': 'gzip' }).end(gzipSync('{}')),
    ],
  ])('responds 502 to %s: %s', async (_description, code, listener) => {
    const { get, completed } = await startExternal(listener);
    const res = await get().expect(502);
    expect(res.type).toBe('application/problem+json');
    expect(JSON.parse(res.text)).toMatchObject({ status: 502, code, requestId: res.headers['x-request-id'] });
    expect(res.headers['proxy-status']).toMatch(
      /^api; (error=http_\w+|received-status=200); next-hop=external$/,
    );
    expect(completed()).toMatchObject([{ status: 502, error: code, err: { message: expect.any(String) } }]);
  });

  test('relays a body of exactly 1 MiB', async () => {
    const text = `"${'x'.repeat(2 ** 20 - 2)}"`;
    const { get } = await startExternal(json(text));
    expect((await get().expect(200)).text).toHaveLength(2 ** 20);
  });

  test.each([301, 302, 307, 400, 404, 500, 503])(
    'responds 502 unexpected_status to a %i and follows no redirect',
    async (status) => {
      const { get, requests } = await startExternal(
        (_req, res) => void res.writeHead(status, { location: '/elsewhere' }).end(),
      );
      const res = await get().expect(502);
      expect(JSON.parse(res.text)).toMatchObject({ code: 'unexpected_status' });
      expect(res.headers['proxy-status']).toBe(`api; received-status=${status}; next-hop=external`);
      expect(res.headers).not.toHaveProperty('location');
      expect(requests).toHaveLength(1);
    },
  );

  test.each<[string, string, number, (socket: Socket) => void]>([
    ['sends no response', 'http_response_timeout', 504, () => {}],
    ['resets the connection', 'connection_terminated', 502, (socket) => void socket.resetAndDestroy()],
    [
      'truncates its body',
      'http_response_incomplete',
      502,
      (socket) => void socket.end('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{'),
    ],
  ])('when it %s, responds %s, %i', async (_description, code, status, misbehave) => {
    const { app } = createApi(await rawUpstream(misbehave));
    const res = await request(app).get('/data').expect(status);
    expect(res.body).toMatchObject({ status, code });
    expect(res.headers['proxy-status']).toBe(`api; error=${code}; next-hop=external`);
  });

  test('responds 502 connection_refused when nothing listens on the port', async () => {
    const { app } = createApi(`http://127.0.0.1:${await closedPort()}`);
    expect((await request(app).get('/data').expect(502)).body).toMatchObject({ code: 'connection_refused' });
  });
});

describe('the cache of /data', () => {
  test.each<[string, Record<string, string>]>([
    ['max-age=60', {}],
    ['s-maxage=60, max-age=0', {}],
    ['Max-Age=60', {}],
    ['max-age=60, must-revalidate', {}],
    ['max-age=60, proxy-revalidate', {}],
    ['max-age=100', { age: '40' }],
  ])('with %s, serves the second request from the cache, with Age', async (cacheControl, headers) => {
    const { get, requests, completed } = await startExternal(
      json('{"a":1}', { 'cache-control': cacheControl, ...headers }),
    );
    await get().expect(200);
    const res = await get().expect(200);
    expect(res.text).toBe('{"a":1}');
    expect(Number(res.headers.age)).toBe(Number(headers.age ?? 0));
    expect(res.headers['cache-status']).toBe('api; hit');
    expect(requests).toHaveLength(1);
    expect(completed()[1]).not.toHaveProperty('nextHop');
  });

  test('uses Expires as the lifetime', async () => {
    const expires = new Date(Date.now() + 60_000).toUTCString();
    const { get, requests } = await startExternal(json('{}', { expires }));
    await get().expect(200);
    await get().expect(200);
    expect(requests).toHaveLength(1);
  });

  test.each([
    ['no headers', {}],
    ['only Last-Modified', { 'last-modified': 'Thu, 01 Jan 2015 00:00:00 GMT' }],
    ['public', { 'cache-control': 'public' }],
    ['immutable', { 'cache-control': 'immutable' }],
    ['no-store', { 'cache-control': 'no-store, max-age=60' }],
    ['private', { 'cache-control': 'private, max-age=60' }],
    ['no-cache', { 'cache-control': 'no-cache, max-age=60' }],
    ['an age greater than max-age', { 'cache-control': 'max-age=60', age: '61' }],
    ['Expires: 0', { expires: '0' }],
    [
      'immutable and an age past Expires',
      { expires: new Date(Date.now() + 2000).toUTCString(), age: '9', 'cache-control': 'immutable' },
    ],
    ['Vary: *', { 'cache-control': 'max-age=60', vary: '*' }],
  ])('with %s, fetches again for the second request', async (_description, headers) => {
    const { get, requests } = await startExternal(json('{}', headers));
    await get().expect(200);
    await get().expect(200);
    expect(requests).toHaveLength(2);
  });

  test('revalidates a stale response; a 304 makes it fresh again', async () => {
    const { get, requests, setListener, completed } = await startExternal(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '60', etag: '"v1"' }),
    );
    await get().expect(200);
    setListener(
      (_req, res) => void res.writeHead(304, { etag: '"v1"', 'cache-control': 'max-age=60' }).end(),
    );
    const revalidated = await get().expect(200);
    expect(revalidated.text).toBe('{"a":1}');
    expect(revalidated.headers['cache-status']).toBe('api; fwd=stale; fwd-status=304');
    expect(requests[1]?.headers).toMatchObject({ 'if-none-match': '"v1"' });
    expect(completed()[1]).toMatchObject({ status: 200, nextHopStatus: 304 });
    expect((await get().expect(200)).headers['cache-status']).toBe('api; hit');
    expect(requests).toHaveLength(2);
  });

  test('replaces a stale response with the new one', async () => {
    const { get, setListener } = await startExternal(
      json('{"a":1}', { 'cache-control': 'max-age=0', etag: '"v1"' }),
    );
    await get().expect(200);
    setListener(json('{"a":2}', { 'cache-control': 'max-age=60', etag: '"v2"' }));
    expect((await get().expect(200)).text).toBe('{"a":2}');
    expect((await get().expect(200)).headers['cache-status']).toBe('api; hit');
  });

  test.each<[string, (req: IncomingMessage, res: ServerResponse) => void, object]>([
    ['closes the connection', closeConnection, { error: 'connection_terminated', status: 200 }],
    ['responds 503', respondWithStatus(503), { nextHopStatus: 503, status: 200 }],
    ['sends no response', () => {}, { error: 'http_response_timeout', status: 200 }],
    [
      'sends gzip',
      (_req, res) => void res.writeHead(200, { 'content-encoding': 'gzip' }).end('x'),
      { error: 'http_response_content_coding' },
    ],
  ])(
    'serves the stale response with its age when the external API %s',
    async (_description, listener, logged) => {
      const { get, setListener, completed } = await startExternal(
        json('{"a":1}', { 'cache-control': 'max-age=80000', age: '80000' }),
        { timeoutMs: TIMEOUT_MS },
      );
      await get().expect(200);
      setListener(listener);
      const res = await get().expect(200);
      expect(res.text).toBe('{"a":1}');
      expect(Number(res.headers.age)).toBeGreaterThanOrEqual(80_000);
      expect(res.headers['cache-status']).toMatch(/^api; fwd=stale; (detail=\w+|fwd-status=503)$/);
      expect(completed()[1]).toMatchObject(logged);
    },
  );

  test.each([
    ['older than a day', { 'cache-control': 'max-age=1', age: '86401' }],
    ['marked must-revalidate', { 'cache-control': 'max-age=0, must-revalidate' }],
    ['marked proxy-revalidate', { 'cache-control': 'max-age=0, proxy-revalidate' }],
    ['marked no-cache', { 'cache-control': 'no-cache, max-age=60' }],
  ])('does not serve a stale response that is %s', async (_description, headers) => {
    const { get, setListener } = await startExternal(json('{}', headers));
    await get().expect(200);
    setListener(closeConnection);
    await get().expect(502);
    setListener(respondWithStatus(500));
    await get().expect(502);
  });

  test('does not serve a stale response in place of a 404', async () => {
    const { get, setListener } = await startExternal(json('{}', { 'cache-control': 'max-age=0' }));
    await get().expect(200);
    setListener(respondWithStatus(404));
    await get().expect(502);
  });
});

describe('GET /data with concurrent clients', () => {
  type Listener = (req: IncomingMessage, res: ServerResponse) => void;

  async function startServer(initialListener: Listener, options: TestNextHopOptions = {}) {
    const api = await startExternal(initialListener, { timeoutMs: 5000, connections: 16, ...options });
    const server = createServer(api.app).listen(0, '127.0.0.1');
    await once(server, 'listening');
    cleanups.push(async () => server.close());
    const get = () => request(server).get('/data').buffer(true);
    const getAll = (count: number) => Promise.all(Array.from({ length: count }, get));
    return { ...api, get, getAll, port: (server.address() as AddressInfo).port };
  }

  const after =
    (ms: number, listener: Listener): Listener =>
    (req, res) =>
      void setTimeout(listener, ms, req, res);

  const statuses = (responses: { headers: Record<string, string> }[]) =>
    responses.map(({ headers }) => headers['cache-status']).sort();

  test('makes one upstream request for 50 clients of an API that takes 800 ms, with one log line per client', async () => {
    const { getAll, get, requests, completed } = await startServer(after(800, json('{"a":1}')));
    const responses = await getAll(50);
    for (const { status, text } of responses) expect([status, text]).toEqual([200, '{"a":1}']);
    expect(requests).toHaveLength(1);
    expect(statuses(responses)).toEqual([
      'api; fwd=uri-miss; fwd-status=200',
      ...Array(49).fill('api; fwd=uri-miss; fwd-status=200; collapsed'),
    ]);
    for (const { headers } of responses)
      expect(headers['server-timing']).toMatch(/^external;dur=[\d.]+, total;dur=[\d.]+$/);
    expect(completed().map(({ requestId }) => requestId)).toEqual(
      expect.arrayContaining(responses.map(({ headers }) => headers['x-request-id'])),
    );
    expect(completed()).toHaveLength(50);
    for (const line of completed())
      expect(line).toMatchObject({
        status: 200,
        nextHop: 'external',
        nextHopStatus: 200,
        nextHopBytes: 7,
        nextHopMs: expect.any(Number),
      });
    await get().expect(200).expect('cache-status', 'api; fwd=uri-miss; fwd-status=200');
    expect(requests).toHaveLength(2);
  });

  test('validates a shared response once', async () => {
    const text = `{"a":"${'x'.repeat(500_000)}"}`;
    const { port } = await startServer(after(300, json(text)));
    const parse = jest.spyOn(JSON, 'parse');
    cleanups.push(async () => parse.mockRestore());
    // Unlike supertest, fetch does not parse the body by itself.
    const get = async () => (await fetch(`http://127.0.0.1:${port}/data`)).text();
    for (const body of await Promise.all(Array.from({ length: 20 }, get))) expect(body).toBe(text);
    expect(parse.mock.calls.filter(([parsed]) => parsed === text)).toHaveLength(1);
  });

  test('cancels the upstream request only when all clients have disconnected', async () => {
    let cancelled = 0;
    const release: (() => void)[] = [];
    const { get, requests, port, completed } = await startServer((_req, res) => {
      res.on('close', () => void (res.writableFinished || cancelled++));
      release.push(() => res.writeHead(200, JSON_TYPE).end('{}'));
    });
    const connectClient = () => {
      const client = connect(port, '127.0.0.1');
      client.write('GET /data HTTP/1.1\r\nhost: a\r\n\r\n');
      return client;
    };
    const first = connectClient();
    await until(() => requests.length === 1);
    const second = get().then(({ status, headers }) => [status, headers['cache-status']]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    first.destroy();
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499 }]);
    release[0]?.();
    expect(await second).toEqual([200, 'api; fwd=uri-miss; fwd-status=200; collapsed']);
    expect([requests.length, cancelled]).toEqual([1, 0]);

    const clients = [connectClient(), connectClient()];
    await until(() => requests.length === 2);
    await new Promise((resolve) => setTimeout(resolve, 50));
    for (const client of clients) client.destroy();
    await until(() => cancelled === 1);
    const next = get().then(({ status }) => status);
    await until(() => requests.length === 3);
    release[2]?.();
    expect(await next).toBe(200);
  });

  test.each<[string, Listener, number, string]>([
    ['a closed connection', closeConnection, 502, 'connection_terminated'],
    ['a 404', respondWithStatus(404), 502, 'unexpected_status'],
    ['invalid JSON', json('{"a":'), 502, 'unexpected_content'],
    ['no response in time', () => {}, 504, 'http_response_timeout'],
  ])(
    '%s fails all requests that share the fetch, and the next request fetches again',
    async (_description, fail, status, code) => {
      const { getAll, get, requests, setListener, completed } = await startServer(after(200, fail), {
        timeoutMs: 1500,
      });
      const responses = await getAll(20);
      const bodies = responses.map(({ text }) => JSON.parse(text));
      for (const body of bodies) expect(body).toMatchObject({ status, code });
      expect(new Set(bodies.map(({ requestId }) => requestId)).size).toBe(20);
      // A fetch has at most two retries and one hedge.
      expect(requests.length).toBeLessThanOrEqual(4);
      expect(completed()).toHaveLength(20);
      for (const line of completed())
        expect(line).toMatchObject({ nextHop: 'external', status, error: code });
      setListener(json('{}'));
      await get().expect(200);
    },
  );

  test('revalidates a stale response once for all requests that share the fetch', async () => {
    const { getAll, get, requests, setListener } = await startServer(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '60', etag: '"v1"' }),
    );
    await get().expect(200);
    const notModified: Listener = (_req, res) =>
      void res.writeHead(304, { etag: '"v1"', 'cache-control': 'max-age=60' }).end();
    setListener(after(300, notModified));
    const responses = await getAll(20);
    for (const { status, text, headers } of responses)
      expect([status, text, headers.age]).toEqual([200, '{"a":1}', '0']);
    expect(statuses(responses)).toEqual([
      'api; fwd=stale; fwd-status=304',
      ...Array(19).fill('api; fwd=stale; fwd-status=304; collapsed'),
    ]);
    expect(requests.map(({ headers }) => headers['if-none-match'])).toEqual([undefined, '"v1"']);
    await get().expect(200).expect('cache-status', 'api; hit');
    expect(requests).toHaveLength(2);
  });

  test('serves the stale response to all requests that share a failed fetch', async () => {
    const { getAll, get, requests, setListener } = await startServer(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '100' }),
    );
    await get().expect(200);
    setListener(after(200, respondWithStatus(500)));
    for (const { status, text, headers } of await getAll(20)) {
      expect([status, text]).toEqual([200, '{"a":1}']);
      expect(Number(headers.age)).toBeGreaterThanOrEqual(100);
      expect(headers['cache-status']).toMatch(/^api; fwd=stale; fwd-status=500(; collapsed)?$/);
    }
    expect(requests).toHaveLength(2);
  });
});

async function until(condition: () => boolean) {
  for (let i = 0; i < 200 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(condition()).toBe(true);
}
