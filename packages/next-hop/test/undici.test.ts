import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable, Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { pipeline as pipe } from 'node:stream/promises';
import * as undici8 from 'undici';
import * as undici7 from 'undici7';
import { lookupOf, sleep, testClients, until } from './clients';

const { client, server, cleanUp } = testClients();

/** Responds with the method, path and body of the request. */
async function echo(req: IncomingMessage, res: ServerResponse) {
  const body = await text(req);
  res.writeHead(200, { 'x-echo': 'yes', 'set-cookie': ['a=1', 'b=2'] });
  res.end(`${req.method} ${req.url} ${body}`);
}

/** A client of two addresses. The first closes each connection without a response. */
async function withBrokenReplica(listener = echo) {
  const good = await server(listener, '127.0.0.2');
  const broken = await server((req) => req.socket.destroy(), '127.0.0.1', good.port);
  const origin = `http://hop.test:${good.port}`;
  return {
    good,
    broken,
    origin,
    dispatcher: client(origin, { lookup: lookupOf(['127.0.0.1', '127.0.0.2']) }),
  };
}

describe.each([
  ['undici 8', undici8],
  // The types of the two versions differ, although their functions accept the same dispatcher.
  ['undici 7', undici7 as unknown as typeof undici8],
])('the functions of %s with NextHop as dispatcher', (_version, { request, stream, pipeline, fetch }) => {
  test('request resolves to the response when one replica closes connections', async () => {
    const { origin, dispatcher, broken } = await withBrokenReplica();
    for (let i = 0; i < 4; i++) {
      const { statusCode, headers, body } = await request(`${origin}/a?b=c`, { dispatcher });
      expect([statusCode, headers['x-echo'], await body.text()]).toEqual([200, 'yes', 'GET /a?b=c ']);
    }
    expect(broken.requests()).toBeGreaterThan(0);
  });

  test('request sends the body of a POST', async () => {
    const { origin } = await server(echo);
    const options = { dispatcher: client(origin), method: 'POST' as const, body: 'sent' };
    const { body } = await request(`${origin}/a`, options);
    expect(await body.text()).toBe('POST /a sent');
  });

  test('request rejects with the reason when its signal aborts', async () => {
    const { origin } = await server(() => {});
    const signal = AbortSignal.timeout(50);
    const response = request(origin, { dispatcher: client(origin), signal });
    await expect(response).rejects.toMatchObject({ name: 'TimeoutError' });
  });

  test('stream writes the response into the stream of its factory', async () => {
    const { origin } = await server(echo);
    const chunks: Buffer[] = [];
    const sink = new Writable({ write: (chunk, _encoding, done) => done(void chunks.push(chunk)) });
    await stream(`${origin}/a`, { dispatcher: client(origin), method: 'GET' }, () => sink);
    expect(Buffer.concat(chunks).toString()).toBe('GET /a ');
  });

  test('pipeline sends what is written and returns the response', async () => {
    const { origin } = await server(echo);
    const options = { dispatcher: client(origin), method: 'PUT' as const };
    const duplex = pipeline(`${origin}/a`, options, ({ body }) => body);
    const chunks: Buffer[] = [];
    await pipe(Readable.from(['one ', 'two']), duplex, async (body) => {
      for await (const chunk of body) chunks.push(chunk);
    });
    expect(Buffer.concat(chunks).toString()).toBe('PUT /a one two');
  });

  test('fetch resolves to the response when one replica closes connections', async () => {
    const { origin, dispatcher, broken } = await withBrokenReplica();
    for (let i = 0; i < 4; i++) {
      const response = await fetch(`${origin}/a`, { dispatcher });
      expect([response.status, await response.text()]).toEqual([200, 'GET /a ']);
      expect(response.headers.getSetCookie()).toEqual(['a=1', 'b=2']);
    }
    expect(broken.requests()).toBeGreaterThan(0);
  });

  test('fetch sends a streamed body', async () => {
    const { origin } = await server(echo);
    const body = new Blob(['one ', 'two']).stream();
    const response = await fetch(origin, {
      dispatcher: client(origin),
      method: 'POST',
      body,
      duplex: 'half',
    });
    expect(await response.text()).toBe('POST / one two');
  });

  test('fetch rejects with a TypeError whose cause is the NextHopError when the next hop is down', async () => {
    const { origin, close } = await server(echo);
    const dispatcher = client(origin);
    await close();
    const failure = fetch(origin, { dispatcher });
    await expect(failure).rejects.toMatchObject({
      name: 'TypeError',
      cause: { code: 'connection_refused' },
    });
  });
});

describe('the global fetch with NextHop as its dispatcher', () => {
  type GlobalFetchOptions = RequestInit & { dispatcher: unknown };
  const globalFetch = (url: string, options: GlobalFetchOptions) => fetch(url, options as RequestInit);

  test('resolves to the response when one replica closes connections', async () => {
    const { origin, dispatcher, broken } = await withBrokenReplica();
    for (let i = 0; i < 4; i++) {
      const response = await globalFetch(`${origin}/a`, { dispatcher });
      expect([response.status, await response.text()]).toEqual([200, 'GET /a ']);
      expect(response.headers.getSetCookie()).toEqual(['a=1', 'b=2']);
    }
    expect(broken.requests()).toBeGreaterThan(0);
  });

  test('sends a JSON body', async () => {
    const { origin } = await server(echo);
    const options = { dispatcher: client(origin), method: 'POST', body: JSON.stringify({ year: 1851 }) };
    expect(await (await globalFetch(origin, options)).text()).toBe('POST / {"year":1851}');
  });

  test('rejects with the reason when its signal aborts while the body is read', async () => {
    const { origin } = await server((_req, res) => void res.write('half'));
    const controller = new AbortController();
    const response = await globalFetch(origin, { dispatcher: client(origin), signal: controller.signal });
    const reading = response.text();
    controller.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
  });

  test('rejects with the NextHopError as its cause when the deadline passes', async () => {
    const { origin } = await server(() => {});
    const response = globalFetch(origin, { dispatcher: client(origin, { timeoutMs: 200 }) });
    const cause = await response.catch((error: Error) => error.cause);
    // Node's fetch turns an error of Jest's realm into one of its own. The test of the tarball checks the code.
    expect(String(cause)).toMatch(/NextHopError.* http_response_timeout/);
  });

  test('pauses the socket when the body of the response is not read', async () => {
    const { origin } = await server((_req, res) => void Readable.from(endless()).pipe(res));
    const bytes: number[] = [];
    const dispatcher = client(origin, {
      timeoutMs: 400,
      observer: { exchangeEnded: ({ bodyBytes }) => void bytes.push(bodyBytes) },
    });
    const response = await globalFetch(origin, { dispatcher });
    await expect(response.body?.getReader().closed).rejects.toThrow();
    expect(bytes).toHaveLength(1);
    expect(bytes[0]).toBeLessThan(4 * 1024 * 1024);
  });
});

function* endless() {
  const chunk = Buffer.alloc(64 * 1024);
  while (true) yield chunk;
}

describe('compose', () => {
  const { cache, retry, redirect, dump, responseError } = undici8.interceptors;

  test('with the cache interceptor sends one of two requests when the response is cacheable', async () => {
    const hop = await server((_req, res) => void res.setHeader('cache-control', 'max-age=60').end('cached'));
    const cached = client(hop.origin).compose(cache());
    for (let i = 0; i < 2; i++) {
      const { body } = await cached.request({ path: '/', method: 'GET' });
      expect(await body.text()).toBe('cached');
    }
    expect(hop.requests()).toBe(1);
  });

  test('with the retry interceptor repeats a request when the response is a 500', async () => {
    let requests = 0;
    const hop = await server((_req, res) => {
      res.statusCode = ++requests < 3 ? 500 : 200;
      res.end(String(requests));
    });
    const retrying = client(hop.origin).compose(retry({ minTimeout: 1, statusCodes: [500] }));
    const { statusCode, body } = await retrying.request({ path: '/', method: 'GET' });
    expect([statusCode, await body.text()]).toEqual([200, '3']);
  });

  test('with the redirect interceptor follows a location on its own origin', async () => {
    const hop = await server((req, res) => {
      if (req.url === '/old') res.writeHead(302, { location: '/new' }).end();
      else res.end(req.url);
    });
    const redirecting = client(hop.origin).compose(redirect({ maxRedirections: 2 }));
    const { body } = await redirecting.request({ path: '/old', method: 'GET' });
    expect(await body.text()).toBe('/new');
  });

  test('with the redirect interceptor fails when the location has another origin', async () => {
    const other = await server((_req, res) => void res.end('other'));
    const hop = await server((_req, res) => void res.writeHead(302, { location: other.origin }).end());
    const redirecting = client(hop.origin).compose(redirect({ maxRedirections: 2 }));
    const response = redirecting.request({ path: '/', method: 'GET' });
    await expect(response).rejects.toMatchObject({ code: 'UND_ERR_INVALID_ARG' });
    expect(other.requests()).toBe(0);
  });

  test('with the dump interceptor discards the body', async () => {
    const { origin } = await server((_req, res) => void res.end('discarded'));
    const dumping = client(origin).compose(dump());
    const { statusCode, body } = await dumping.request({ path: '/', method: 'GET' });
    expect([statusCode, await body.text()]).toEqual([200, '']);
  });

  test('with the responseError interceptor rejects when the status is 404', async () => {
    const { origin } = await server((_req, res) => void res.writeHead(404).end('none'));
    const strict = client(origin).compose(responseError());
    const response = strict.request({ path: '/', method: 'GET' });
    await expect(response).rejects.toMatchObject({ code: 'UND_ERR_RESPONSE', statusCode: 404 });
  });

  test.each([
    ['the global fetch', fetch as unknown as typeof undici8.fetch],
    ["undici 7's fetch", undici7.fetch as unknown as typeof undici8.fetch],
    ["undici 8's fetch", undici8.fetch],
  ])('works as the dispatcher of %s', async (_name, fetch) => {
    const hop = await server((_req, res) => void res.setHeader('cache-control', 'max-age=60').end('cached'));
    const dispatcher = client(hop.origin).compose(cache());
    for (let i = 0; i < 2; i++) expect(await (await fetch(hop.origin, { dispatcher })).text()).toBe('cached');
    expect(hop.requests()).toBe(1);
  });

  test('takes an array of interceptors', async () => {
    const hop = await server((_req, res) => void res.setHeader('cache-control', 'max-age=60').end('cached'));
    const dispatcher = client(hop.origin).compose([dump({ maxSize: 1024 }), cache()]);
    for (let i = 0; i < 2; i++) await (await undici8.fetch(hop.origin, { dispatcher })).text();
    expect(hop.requests()).toBe(1);
  });
});

describe('MockAgent', () => {
  test('as global dispatcher does not affect requests of NextHop', async () => {
    const { origin } = await server((_req, res) => void res.end('real'));
    const previous = undici8.getGlobalDispatcher();
    const mock = new undici8.MockAgent();
    mock.disableNetConnect();
    undici8.setGlobalDispatcher(mock);
    cleanUp(async () => {
      undici8.setGlobalDispatcher(previous);
      await mock.close();
    });
    expect((await client(origin).get('/')).text()).toBe('real');
    await expect(undici8.request(origin)).rejects.toThrow(/net.connect disabled/);
  });

  test('responds in place of the next hop when the factory returns one of its pools', async () => {
    const mock = new undici8.MockAgent();
    mock.disableNetConnect();
    mock.get('http://hop.test').intercept({ path: '/' }).reply(201, 'mocked');
    const hop = client('http://hop.test', { factory: ({ origin }) => mock.get(origin) });
    const response = await hop.get('/');
    expect([response.statusCode, response.text()]).toEqual([201, 'mocked']);
    await hop.close();
  });
});

test('a factory whose dispatcher throws rejects the request with that error, even if a hedge throws', async () => {
  const states: string[] = [];
  const mock = new undici8.MockAgent();
  mock.disableNetConnect();
  const observer = { circuitChanged: (state: string) => void states.push(state) };
  const hop = client('http://hop.test', {
    factory: ({ origin }) => mock.get(origin),
    timeoutMs: 200,
    observer,
  });
  const code = 'UND_MOCK_ERR_MOCK_NOT_MATCHED';
  // The first request waits for the lookup, later ones are dispatched synchronously.
  for (let i = 0; i < 40; i++) await expect(hop.get('/')).rejects.toMatchObject({ code });
  mock.get('http://hop.test').intercept({ path: '/' }).reply(200, 'late').delay(5000);
  await expect(hop.get('/')).rejects.toMatchObject({ code });
  await hop.close();
  expect(states).toEqual([]);
});

test('aborts a cancelled request that a custom dispatcher starts late', async () => {
  const aborted: unknown[] = [];
  class Late extends undici8.Dispatcher {
    override dispatch(_options: unknown, handler: undici8.Dispatcher.DispatchHandler) {
      const controller = { abort: (reason: unknown) => aborted.push(reason) };
      setTimeout(() => handler.onRequestStart?.(controller as never, undefined), 100);
      return true;
    }
    override close = async () => {};
    override destroy = async () => {};
  }
  const hop = client('http://hop.test', { factory: () => new Late(), timeoutMs: 50 });
  await expect(hop.get('/')).rejects.toMatchObject({ code: 'connection_timeout' });
  await until(() => aborted.length > 0);
  await sleep(0);
});
