import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { gzipSync } from 'node:zlib';
import request from 'supertest';
import type { NextHopOptions } from '../../chassis/next-hop/client';
import { apiOver } from '../../test/app-under-test';
import { deadPort, httpHop, rawHop, type StubHop } from '../../test/stub-hop';

const TIMEOUT_MS = 400;
const JSON_TYPE = { 'content-type': 'application/json' };
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

function over(hop: StubHop | string, options: Partial<NextHopOptions> = {}) {
  const origin = typeof hop === 'string' ? hop : hop.origin;
  const api = apiOver(origin, { timeoutMs: TIMEOUT_MS }, 1024, options);
  cleanups.push(() => api.external.close());
  if (typeof hop !== 'string') cleanups.push(() => hop.close());
  return api;
}

/** An external API that answers as `answer` says, which a test may exchange. */
async function external(
  first: (req: IncomingMessage, res: ServerResponse) => void,
  options: Partial<NextHopOptions> = {},
) {
  let answer = first;
  const seen: IncomingMessage[] = [];
  const hop = await httpHop((req, res) => {
    seen.push(req);
    answer(req, res);
  });
  const { app, completed, lines } = over(hop, options);
  const get = () => request(app).get('/data').buffer(true);
  return { app, get, seen, completed, lines, exchange: (next: typeof first) => (answer = next) };
}

const json =
  (text: string, headers: Record<string, string> = {}) =>
  (_req: unknown, res: ServerResponse) =>
    void res.writeHead(200, { ...JSON_TYPE, ...headers }).end(text);
const fails = (status: number) => (_req: unknown, res: ServerResponse) => void res.writeHead(status).end();
const dies = (req: IncomingMessage) => void req.socket.destroy();

describe('GET /data when the external API answers', () => {
  test('its bytes are relayed as they came, as application/json', async () => {
    const text = '{ "n": 12345678901234567890.10,\n "ü": "☕" }';
    const { get, completed } = await external(
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

  test('nothing that the client sends goes along, or changes what is asked for', async () => {
    const { app, seen } = await external(json('{}'));
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
    const names = seen[0]?.rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
    expect(names?.sort()).toEqual(['accept', 'accept-encoding', 'connection', 'host']);
    expect(seen[0]).toMatchObject({
      url: '/data.json',
      headers: { accept: 'application/json', 'accept-encoding': 'identity' },
    });
  });

  test('at level debug the data is logged, cut at 1 kB and never through a character', async () => {
    const { get, lines } = await external(json(`"${'é'.repeat(2000)}"`));
    await get().expect(200);
    const { data } = lines.find(({ msg }) => msg === 'data relayed') as unknown as { data: string };
    expect(data).toBe(`"${'é'.repeat(499)}`);
  });

  test('HEAD has the headers of GET and no body; other methods get 405', async () => {
    const { app } = await external(json('{"a":1}'));
    const head = await request(app).head('/data').expect(200);
    expect(head.headers['content-length']).toBe('7');
    const post = await request(app).post('/data').expect(405).expect('allow', 'GET, HEAD');
    expect(post.body.code).toBe('method_not_allowed');
  });
});

describe('GET /data when it gives nothing usable', () => {
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
    ['JSON cut short', 'unexpected_content', json('{"a":')],
    [
      'JSON that is not UTF-8',
      'unexpected_content',
      (_req, res) => void res.writeHead(200, JSON_TYPE).end(Buffer.from('"\xff"', 'latin1')),
    ],
    ['nothing', 'unexpected_content', json('')],
    ['2 MiB', 'http_response_body_size', json(`"${'x'.repeat(2 ** 21)}"`)],
    ['an endless body', 'http_response_body_size', endless],
    [
      'gzip',
      'http_response_content_coding',
      (_req, res) =>
        void res.writeHead(200, { ...JSON_TYPE, 'content-encoding': 'gzip' }).end(gzipSync('{}')),
    ],
  ])('%s: 502 %s', async (_what, code, answer) => {
    const { get, completed } = await external(answer);
    const res = await get().expect(502);
    expect(res.type).toBe('application/problem+json');
    expect(JSON.parse(res.text)).toMatchObject({ status: 502, code, requestId: res.headers['x-request-id'] });
    expect(res.headers['proxy-status']).toMatch(
      /^api; (error=http_\w+|received-status=200); next-hop=external$/,
    );
    expect(completed()).toMatchObject([{ status: 502, error: code, err: { message: expect.any(String) } }]);
  });

  test('exactly 1 MiB is relayed', async () => {
    const text = `"${'x'.repeat(2 ** 20 - 2)}"`;
    const { get } = await external(json(text));
    expect((await get().expect(200)).text).toHaveLength(2 ** 20);
  });

  test.each([301, 302, 307, 400, 404, 500, 503])(
    'a %i: 502 unexpected_status, and no redirect is followed',
    async (status) => {
      const { get, seen } = await external(
        (_req, res) => void res.writeHead(status, { location: '/elsewhere' }).end(),
      );
      const res = await get().expect(502);
      expect(JSON.parse(res.text)).toMatchObject({ code: 'unexpected_status' });
      expect(res.headers['proxy-status']).toBe(`api; received-status=${status}; next-hop=external`);
      expect(res.headers).not.toHaveProperty('location');
      expect(seen).toHaveLength(1);
    },
  );

  test.each<[string, string, number, (socket: Socket) => void]>([
    ['stalls', 'http_response_timeout', 504, () => {}],
    ['resets', 'connection_terminated', 502, (socket) => void socket.resetAndDestroy()],
    [
      'breaks off',
      'http_response_incomplete',
      502,
      (socket) => void socket.end('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{'),
    ],
  ])('it %s: %s, %i', async (_what, code, status, misbehave) => {
    const { app } = over(await rawHop(misbehave));
    const res = await request(app).get('/data').expect(status);
    expect(res.body).toMatchObject({ status, code });
    expect(res.headers['proxy-status']).toBe(`api; error=${code}; next-hop=external`);
  });

  test('nobody listens: 502 connection_refused', async () => {
    const { app } = over(`http://127.0.0.1:${await deadPort()}`);
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
  ])('%s: the second answer comes out of it, with its age', async (control, headers) => {
    const { get, seen, completed } = await external(
      json('{"a":1}', { 'cache-control': control, ...headers }),
    );
    await get().expect(200);
    const res = await get().expect(200);
    expect(res.text).toBe('{"a":1}');
    expect(Number(res.headers.age)).toBe(Number(headers.age ?? 0));
    expect(res.headers['cache-status']).toBe('api; hit');
    expect(seen).toHaveLength(1);
    expect(completed()[1]).not.toHaveProperty('nextHop');
  });

  test('Expires is a lifetime too', async () => {
    const expires = new Date(Date.now() + 60_000).toUTCString();
    const { get, seen } = await external(json('{}', { expires }));
    await get().expect(200);
    await get().expect(200);
    expect(seen).toHaveLength(1);
  });

  test.each([
    ['nothing', {}],
    ['Last-Modified alone', { 'last-modified': 'Thu, 01 Jan 2015 00:00:00 GMT' }],
    ['public', { 'cache-control': 'public' }],
    ['immutable', { 'cache-control': 'immutable' }],
    ['no-store', { 'cache-control': 'no-store, max-age=60' }],
    ['private', { 'cache-control': 'private, max-age=60' }],
    ['no-cache', { 'cache-control': 'no-cache, max-age=60' }],
    ['an age beyond its lifetime', { 'cache-control': 'max-age=60', age: '61' }],
    ['Expires: 0', { expires: '0' }],
    [
      'an age beyond its Expires, immutable',
      { expires: new Date(Date.now() + 2000).toUTCString(), age: '9', 'cache-control': 'immutable' },
    ],
    ['Vary: *', { 'cache-control': 'max-age=60', vary: '*' }],
  ])('%s: asked again', async (_what, headers) => {
    const { get, seen } = await external(json('{}', headers));
    await get().expect(200);
    await get().expect(200);
    expect(seen).toHaveLength(2);
  });

  test('a stale answer is revalidated, and confirmed by a 304 it is fresh again', async () => {
    const { get, seen, exchange, completed } = await external(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '60', etag: '"v1"' }),
    );
    await get().expect(200);
    exchange((_req, res) => void res.writeHead(304, { etag: '"v1"', 'cache-control': 'max-age=60' }).end());
    const confirmed = await get().expect(200);
    expect(confirmed.text).toBe('{"a":1}');
    expect(confirmed.headers['cache-status']).toBe('api; fwd=stale; fwd-status=304');
    expect(seen[1]?.headers).toMatchObject({ 'if-none-match': '"v1"' });
    expect(completed()[1]).toMatchObject({ status: 200, nextHopStatus: 304 });
    expect((await get().expect(200)).headers['cache-status']).toBe('api; hit');
    expect(seen).toHaveLength(2);
  });

  test('a stale answer is replaced by a new one', async () => {
    const { get, exchange } = await external(json('{"a":1}', { 'cache-control': 'max-age=0', etag: '"v1"' }));
    await get().expect(200);
    exchange(json('{"a":2}', { 'cache-control': 'max-age=60', etag: '"v2"' }));
    expect((await get().expect(200)).text).toBe('{"a":2}');
    expect((await get().expect(200)).headers['cache-status']).toBe('api; hit');
  });

  test.each<[string, (req: IncomingMessage, res: ServerResponse) => void, object]>([
    ['dies', dies, { error: 'connection_terminated', status: 200 }],
    ['answers 503', fails(503), { nextHopStatus: 503, status: 200 }],
    ['stalls', () => {}, { error: 'http_response_timeout', status: 200 }],
    [
      'sends gzip',
      (_req, res) => void res.writeHead(200, { 'content-encoding': 'gzip' }).end('x'),
      { error: 'http_response_content_coding' },
    ],
  ])('when it then %s, the stale answer is served with its age', async (_what, then, logged) => {
    const { get, exchange, completed } = await external(
      json('{"a":1}', { 'cache-control': 'max-age=80000', age: '80000' }),
    );
    await get().expect(200);
    exchange(then);
    const res = await get().expect(200);
    expect(res.text).toBe('{"a":1}');
    expect(Number(res.headers.age)).toBeGreaterThanOrEqual(80_000);
    expect(res.headers['cache-status']).toMatch(/^api; fwd=stale; (detail=\w+|fwd-status=503)$/);
    expect(completed()[1]).toMatchObject(logged);
  });

  test.each([
    ['older than a day', { 'cache-control': 'max-age=1', age: '86401' }],
    ['must-revalidate', { 'cache-control': 'max-age=0, must-revalidate' }],
    ['proxy-revalidate', { 'cache-control': 'max-age=0, proxy-revalidate' }],
    ['no-cache', { 'cache-control': 'no-cache, max-age=60' }],
  ])('one that is %s is not', async (_what, headers) => {
    const { get, exchange } = await external(json('{}', headers));
    await get().expect(200);
    exchange(dies);
    await get().expect(502);
    exchange(fails(500));
    await get().expect(502);
  });

  test('a 404 is not hidden by a stale answer', async () => {
    const { get, exchange } = await external(json('{}', { 'cache-control': 'max-age=0' }));
    await get().expect(200);
    exchange(fails(404));
    await get().expect(502);
  });
});

describe('GET /data by many concurrent clients', () => {
  type Listener = (req: IncomingMessage, res: ServerResponse) => void;

  async function served(first: Listener, options: Partial<NextHopOptions> = {}) {
    const api = await external(first, { timeoutMs: 5000, connections: 16, ...options });
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

  test('50 clients of an API that takes 800 ms share one upstream request, each with its own log line', async () => {
    const { getAll, get, seen, completed } = await served(after(800, json('{"a":1}')));
    const responses = await getAll(50);
    for (const { status, text } of responses) expect([status, text]).toEqual([200, '{"a":1}']);
    expect(seen).toHaveLength(1);
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
    expect(seen).toHaveLength(2);
  });

  test('a response that is shared is validated once', async () => {
    const text = `{"a":"${'x'.repeat(500_000)}"}`;
    const { port } = await served(after(300, json(text)));
    const parse = jest.spyOn(JSON, 'parse');
    cleanups.push(async () => parse.mockRestore());
    // fetch parses nothing that it is not asked to, unlike supertest.
    const get = async () => (await fetch(`http://127.0.0.1:${port}/data`)).text();
    for (const body of await Promise.all(Array.from({ length: 20 }, get))) expect(body).toBe(text);
    expect(parse.mock.calls.filter(([parsed]) => parsed === text)).toHaveLength(1);
  });

  test('a client that leaves does not cancel the fetch for the others; when all have left it is cancelled', async () => {
    let cancelled = 0;
    const release: (() => void)[] = [];
    const { get, seen, port, completed } = await served((_req, res) => {
      res.on('close', () => void (res.writableFinished || cancelled++));
      release.push(() => res.writeHead(200, JSON_TYPE).end('{}'));
    });
    const arrive = () => {
      const client = connect(port, '127.0.0.1');
      client.write('GET /data HTTP/1.1\r\nhost: a\r\n\r\n');
      return client;
    };
    const first = arrive();
    await until(() => seen.length === 1);
    const second = get().then(({ status, headers }) => [status, headers['cache-status']]);
    await new Promise((resolve) => setTimeout(resolve, 50));
    first.destroy();
    await until(() => completed().length === 1);
    expect(completed()).toMatchObject([{ status: 499 }]);
    release[0]?.();
    expect(await second).toEqual([200, 'api; fwd=uri-miss; fwd-status=200; collapsed']);
    expect([seen.length, cancelled]).toEqual([1, 0]);

    const clients = [arrive(), arrive()];
    await until(() => seen.length === 2);
    await new Promise((resolve) => setTimeout(resolve, 50));
    for (const client of clients) client.destroy();
    await until(() => cancelled === 1);
    const next = get().then(({ status }) => status);
    await until(() => seen.length === 3);
    release[2]?.();
    expect(await next).toBe(200);
  });

  test.each<[string, Listener, number, string]>([
    ['a connection that is closed', dies, 502, 'connection_terminated'],
    ['a 404', fails(404), 502, 'unexpected_status'],
    ['invalid JSON', json('{"a":'), 502, 'unexpected_content'],
    ['no response in time', () => {}, 504, 'http_response_timeout'],
  ])(
    '%s fails every request that shares it, and the next one fetches again',
    async (_what, fail, status, code) => {
      const { getAll, get, seen, exchange, completed } = await served(after(200, fail), { timeoutMs: 1500 });
      const responses = await getAll(20);
      const bodies = responses.map(({ text }) => JSON.parse(text));
      for (const body of bodies) expect(body).toMatchObject({ status, code });
      expect(new Set(bodies.map(({ requestId }) => requestId)).size).toBe(20);
      // One fetch has at most two retries and a hedge.
      expect(seen.length).toBeLessThanOrEqual(4);
      expect(completed()).toHaveLength(20);
      for (const line of completed())
        expect(line).toMatchObject({ nextHop: 'external', status, error: code });
      exchange(json('{}'));
      await get().expect(200);
    },
  );

  test('a stale response is revalidated once, and all requests that share the fetch get it', async () => {
    const { getAll, get, seen, exchange } = await served(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '60', etag: '"v1"' }),
    );
    await get().expect(200);
    const confirm: Listener = (_req, res) =>
      void res.writeHead(304, { etag: '"v1"', 'cache-control': 'max-age=60' }).end();
    exchange(after(300, confirm));
    const responses = await getAll(20);
    for (const { status, text, headers } of responses)
      expect([status, text, headers.age]).toEqual([200, '{"a":1}', '0']);
    expect(statuses(responses)).toEqual([
      'api; fwd=stale; fwd-status=304',
      ...Array(19).fill('api; fwd=stale; fwd-status=304; collapsed'),
    ]);
    expect(seen.map(({ headers }) => headers['if-none-match'])).toEqual([undefined, '"v1"']);
    await get().expect(200).expect('cache-status', 'api; hit');
    expect(seen).toHaveLength(2);
  });

  test('when the shared fetch fails, all requests that share it get the stale response', async () => {
    const { getAll, get, seen, exchange } = await served(
      json('{"a":1}', { 'cache-control': 'max-age=60', age: '100' }),
    );
    await get().expect(200);
    exchange(after(200, fails(500)));
    for (const { status, text, headers } of await getAll(20)) {
      expect([status, text]).toEqual([200, '{"a":1}']);
      expect(Number(headers.age)).toBeGreaterThanOrEqual(100);
      expect(headers['cache-status']).toMatch(/^api; fwd=stale; fwd-status=500(; collapsed)?$/);
    }
    expect(seen).toHaveLength(2);
  });
});

async function until(condition: () => boolean) {
  for (let i = 0; i < 200 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(condition()).toBe(true);
}
