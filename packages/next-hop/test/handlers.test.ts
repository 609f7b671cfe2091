import { once } from 'node:events';
import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import type { AttemptOutcome, NextHop } from 'next-hop';
import type { Dispatcher } from 'undici';
import { testClients, until } from './clients';

const { client, server, rawServer } = testClients();

type Controller = Dispatcher.DispatchController;
type Callback = 'onRequestStart' | 'onResponseStart' | 'onResponseData' | 'onResponseEnd';

/** A handler that records its callbacks, and calls the function of the same name in `on`. */
function recorder(on: { [name in Callback]?: (controller: Controller) => void } = {}) {
  const calls: string[] = [];
  const informational: number[] = [];
  let ended = () => {};
  const result = {
    calls,
    informational,
    error: undefined as Error | undefined,
    trailers: {} as object,
    bytes: 0,
    controller: undefined as Controller | undefined,
    ended: new Promise<void>((resolve) => {
      ended = resolve;
    }),
    handler: {
      onRequestStart(controller) {
        result.controller = controller;
        calls.push('onRequestStart');
        on.onRequestStart?.(controller);
      },
      onResponseStart(controller, statusCode) {
        if (statusCode < 200) return void informational.push(statusCode);
        calls.push('onResponseStart');
        on.onResponseStart?.(controller);
      },
      onResponseData(controller, chunk) {
        result.bytes += chunk.length;
        if (calls.at(-1) !== 'onResponseData') calls.push('onResponseData');
        on.onResponseData?.(controller);
      },
      onResponseEnd(controller, trailers) {
        calls.push('onResponseEnd');
        result.trailers = trailers;
        ended();
        on.onResponseEnd?.(controller);
      },
      onResponseError(_controller, error) {
        calls.push('onResponseError');
        result.error = error;
        ended();
      },
    } satisfies Dispatcher.DispatchHandler,
  };
  return result;
}

const get = (hop: NextHop, handler: Dispatcher.DispatchHandler, path = '/') =>
  hop.dispatch({ path, method: 'GET' }, handler);

describe('back-pressure', () => {
  const SIZE = 32 * 1024 * 1024;

  test('a paused controller pauses the socket, and resume continues to the end of the body', async () => {
    const { origin } = await server((_req, res) => void res.end(Buffer.alloc(SIZE)));
    const read = recorder({ onResponseStart: (controller) => controller.pause() });
    get(client(origin, { timeoutMs: 5000 }), read.handler);
    await until(() => read.calls.includes('onResponseStart'));
    await delay(100);
    expect(read.controller?.paused).toBe(true);
    expect(read.bytes).toBeLessThan(SIZE / 8);
    read.controller?.resume();
    await read.ended;
    expect(read.bytes).toBe(SIZE);
  });

  test('a slow reader of request() receives the whole body while the socket is paused in between', async () => {
    let isDrained = true;
    const { origin } = await server((_req, res) => {
      isDrained = res.write(Buffer.alloc(SIZE));
      res.once('drain', () => {
        isDrained = true;
      });
      res.end();
    });
    const { body } = await client(origin, { timeoutMs: 5000 }).request({ path: '/', method: 'GET' });
    await delay(200);
    expect(isDrained).toBe(false);
    let bytes = 0;
    for await (const chunk of body) bytes += chunk.length;
    expect(bytes).toBe(SIZE);
  });

  test('a deadline that passes while the handler has paused the response does not count as a failure', async () => {
    const large = Buffer.alloc(SIZE / 8);
    const { origin } = await server((_req, res) => void res.end(large));
    const hop = client(origin, { timeoutMs: 400 });
    const pausing = Array.from({ length: 20 }, () =>
      recorder({ onResponseStart: (controller) => controller.pause() }),
    );
    for (const { handler } of pausing) get(hop, handler);
    await Promise.all(pausing.map(({ ended }) => ended));
    for (const { error } of pausing) expect(error).toMatchObject({ code: 'http_response_timeout' });
    expect(hop.circuit).toBe('closed');
  });
});

describe('abort by the controller', () => {
  const reason = new Error('aborted by the handler');
  const abort = (controller: Controller) => controller.abort(reason);

  test('in onRequestStart sends no request', async () => {
    const hop = await server((_req, res) => void res.end());
    const aborted = recorder({ onRequestStart: abort });
    get(client(hop.origin), aborted.handler);
    await aborted.ended;
    expect(aborted.calls).toEqual(['onRequestStart', 'onResponseError']);
    expect(aborted.error).toBe(reason);
    expect(hop.requests()).toBe(0);
  });

  test('before the headers closes the connection and reports the reason', async () => {
    const closed: Promise<unknown>[] = [];
    const { origin } = await server((req) => void closed.push(once(req.socket, 'close')));
    const aborted = recorder();
    get(client(origin), aborted.handler);
    await until(() => closed.length > 0);
    aborted.controller?.abort(reason);
    await aborted.ended;
    await Promise.all(closed);
    expect(aborted.error).toBe(reason);
    expect(aborted.controller).toMatchObject({ aborted: true, reason });
  });

  test.each(['onResponseStart', 'onResponseData'] as const)(
    'in %s ends the response with the reason',
    async (callback) => {
      const { origin } = await server((_req, res) => void res.write('half'));
      const aborted = recorder({ [callback]: abort });
      get(client(origin), aborted.handler);
      await aborted.ended;
      expect(aborted.calls.slice(-2)).toEqual([callback, 'onResponseError']);
      expect(aborted.error).toBe(reason);
    },
  );

  test('after the end of the response does nothing', async () => {
    const { origin } = await server((_req, res) => void res.end('whole'));
    const hop = client(origin);
    const aborted = recorder();
    get(hop, aborted.handler);
    await aborted.ended;
    aborted.controller?.abort(reason);
    expect((await hop.get('/')).text()).toBe('whole');
    expect(aborted.calls.at(-1)).toBe('onResponseEnd');
  });

  test('does not count as a failure', async () => {
    const { origin } = await server((_req, res) => void res.write('half'));
    const hop = client(origin);
    for (let i = 0; i < 40; i++) {
      const aborted = recorder({ onResponseStart: abort });
      get(hop, aborted.handler);
      await aborted.ended;
    }
    expect(hop.circuit).toBe('closed');
  });
});

describe('a handler that throws', () => {
  const thrown = new Error('thrown by a handler');
  const fail = () => {
    throw thrown;
  };

  test.each(['onRequestStart', 'onResponseStart', 'onResponseData', 'onResponseEnd'] as const)(
    'in %s receives its error in onResponseError, and does not affect other requests',
    async (callback) => {
      const { origin } = await server((_req, res) => void setTimeout(() => res.end('ok'), 20));
      const hop = client(origin);
      const others = Array.from({ length: 10 }, () => hop.get('/'));
      const throwing = Array.from({ length: 10 }, () => recorder({ [callback]: fail }));
      for (const { handler } of throwing) get(hop, handler);
      await Promise.all(throwing.map(({ ended }) => ended));
      await delay(10);
      for (const { error, calls } of throwing) {
        expect(error).toBe(thrown);
        expect(calls.filter((call) => call === 'onResponseError')).toHaveLength(1);
      }
      for (const other of others) expect((await other).text()).toBe('ok');
      expect(hop.circuit).toBe('closed');
    },
  );

  test('in onResponseError does not affect other requests', async () => {
    const { origin } = await server((req, res) => void (req.url === '/' && res.end('ok')));
    const hop = client(origin, { timeoutMs: 200 });
    get(hop, { ...recorder().handler, onResponseError: fail }, '/hangs');
    await delay(300);
    expect((await hop.get('/')).text()).toBe('ok');
  });
});

test.each([null, undefined, 'handler'])('dispatch throws when the handler is %p', (handler) => {
  const dispatch = () => get(client('http://127.0.0.1:1'), handler as unknown as Dispatcher.DispatchHandler);
  expect(dispatch).toThrow(expect.objectContaining({ code: 'UND_ERR_INVALID_ARG' }));
});

test('a handler may implement only some callbacks', async () => {
  const { origin } = await server((_req, res) => void res.writeHead(204).end());
  const status = new Promise((resolve) => {
    get(client(origin), { onResponseStart: (_controller, statusCode) => resolve(statusCode) });
  });
  expect(await status).toBe(204);
});

test('informational responses reach the handler before the response', async () => {
  const { origin } = await server((_req, res) => {
    res.writeEarlyHints({ link: '</style.css>; rel=preload' });
    res.end('whole');
  });
  const informed = recorder();
  get(client(origin), informed.handler);
  await informed.ended;
  expect(informed.informational).toEqual([103]);
  expect(informed.calls).toEqual(['onRequestStart', 'onResponseStart', 'onResponseData', 'onResponseEnd']);
});

test('trailers reach the handler at the end of the response', async () => {
  const { origin } = await server((_req, res) => {
    res.writeHead(200, { trailer: 'checksum' });
    res.write('body');
    res.addTrailers({ checksum: 'abc' });
    res.end();
  });
  const read = recorder();
  get(client(origin), read.handler);
  await read.ended;
  expect(read.trailers).toEqual({ checksum: 'abc' });
});

describe('a request with a streamed body', () => {
  const broken = new Error('the body failed');
  function* failing() {
    yield 'first chunk';
    throw broken;
  }
  async function* failingLater() {
    yield 'first chunk';
    await delay(5);
    throw broken;
  }
  async function* slow() {
    yield 'one ';
    await delay(20);
    yield 'two';
  }

  test.each([
    ['a Readable', () => Readable.from(slow())],
    ['an async iterable', slow],
    ['a web stream', () => new Blob(['one ', 'two']).stream()],
    ['a generator', () => ['one ', 'two'].values()],
  ])('sends %s completely', async (_kind, body) => {
    const { origin } = await server((req, res) => void req.pipe(res));
    const options = { path: '/', method: 'POST', body: body() as Readable } as const;
    const response = await client(origin).request(options);
    expect(await response.body.text()).toBe('one two');
  });

  test.each([
    ['a Readable', () => Readable.from(failingLater())],
    ['an async iterable', failingLater],
    ['a generator', failing],
  ])('fails with the error of %s, which does not count as a failure of the next hop', async (_kind, body) => {
    const { origin } = await server(
      (req, res) =>
        void req
          .on('error', () => {})
          .resume()
          .on('end', () => res.end()),
    );
    const outcomes: AttemptOutcome[] = [];
    const hop = client(origin, {
      observer: { attemptEnded: (_attempt, outcome) => void outcomes.push(outcome) },
    });
    for (let i = 0; i < 20; i++) {
      const response = hop.request({ path: '/', method: 'POST', body: body() as Readable });
      await expect(response).rejects.toBe(broken);
    }
    expect(hop.circuit).toBe('closed');
    expect(new Set(outcomes)).toEqual(new Set(['cancelled']));
    expect((await hop.get('/')).statusCode).toBe(200);
  });

  test('is not repeated when the connection closes', async () => {
    const hop = await rawServer((socket) => void socket.destroy());
    const response = client(hop.origin).request({ path: '/', method: 'POST', body: Readable.from(slow()) });
    await expect(response).rejects.toMatchObject({ code: 'connection_terminated' });
    expect(hop.requests()).toBe(1);
  });

  test('fails with an argument error when its content-length is wrong, which does not count as a failure', async () => {
    const { origin } = await server((req, res) => void req.resume().on('end', () => res.end()));
    const hop = client(origin);
    for (let i = 0; i < 20; i++) {
      const options = {
        path: '/',
        method: 'POST',
        headers: { 'content-length': '3' },
        body: 'four',
      } as const;
      const code = 'UND_ERR_REQ_CONTENT_LENGTH_MISMATCH';
      await expect(hop.request(options)).rejects.toMatchObject({ code });
    }
    expect(hop.circuit).toBe('closed');
  });
});
