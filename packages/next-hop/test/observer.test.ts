import type { NextHopOptions, Observer } from 'next-hop';
import type { Dispatcher } from 'undici';
import { closedPort } from '../../../test/stub-upstream';
import { lookupOf, sleep, testClients, until } from './clients';

const { client, server, rawServer } = testClients();
const TWO = ['127.0.0.1', '127.0.0.2'];

/** An observer that writes one line for each event. */
function recorder() {
  const events: string[] = [];
  const observer: Observer = {
    attemptStarted: ({ number, kind, address }, { attempts }) => {
      events.push(`attempt ${number} of ${attempts} started: ${kind} to ${address}`);
      return undefined;
    },
    attemptEnded: ({ number, statusCode }, outcome) =>
      void events.push(`attempt ${number} ended: ${outcome} ${statusCode}`),
    responseStarted: ({ statusCode, bodyBytes }) =>
      void events.push(`response started: ${statusCode}, ${bodyBytes} bytes`),
    exchangeEnded: ({ statusCode, bodyBytes, attempts }, error, isCancelled) =>
      void events.push(
        `exchange ended: ${statusCode}, ${bodyBytes} bytes, ${attempts} attempts, ${error?.code}${isCancelled ? ', cancelled' : ''}`,
      ),
    probeStarted: (address) => void events.push(`probe to ${address}`),
    circuitChanged: (state) => void events.push(`circuit ${state}`),
  };
  return { events, observer };
}

function observed(origin: string, options: NextHopOptions = {}) {
  const { events, observer } = recorder();
  return { events, hop: client(origin, { ...options, observer }) };
}

test('a successful request is one attempt and one exchange with the size of the body', async () => {
  const { origin } = await server((_req, res) => void res.end('twelve bytes'));
  const { events, hop } = observed(origin);
  await hop.get('/');
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'response started: 200, 0 bytes',
    'attempt 1 ended: ok 200',
    'exchange ended: 200, 12 bytes, 1 attempts, undefined',
  ]);
});

test('each event carries the exchange with name, origin, method, path, start and context', async () => {
  const { origin } = await server((_req, res) => void res.end());
  const seen: unknown[] = [];
  const beforeMs = performance.now();
  const hop = client<string>(origin, {
    name: 'books',
    observer: {
      exchangeEnded: ({ nextHop, origin, method, path, context, startedMs }) => {
        expect(startedMs).toBeGreaterThanOrEqual(beforeMs);
        seen.push([nextHop, origin.href, method, path, context]);
      },
    },
  });
  await hop.get('/a', { context: 'from get' });
  await hop.request({ path: '/b', method: 'HEAD', context: 'from request' });
  await sleep(10);
  expect(seen).toEqual([
    ['books', `${origin}/`, 'GET', '/a', 'from get'],
    ['books', `${origin}/`, 'HEAD', '/b', 'from request'],
  ]);
});

test('a retry after a refused connection ends the first attempt before the second starts', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
  const { events, hop } = observed(`http://hop.test:${port}`, {
    lookup: lookupOf(TWO),
  });
  await hop.get('/');
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 1 ended: connection_refused undefined',
    'attempt 2 of 2 started: retry to 127.0.0.2',
    'response started: 200, 0 bytes',
    'attempt 2 ended: ok 200',
    'exchange ended: 200, 2 bytes, 2 attempts, undefined',
  ]);
});

test('when a 503 is retried, both attempts end with ok, and there is one response', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
  await server((_req, res) => void res.writeHead(503).end(), '127.0.0.1', port);
  const { events, hop } = observed(`http://hop.test:${port}`, {
    lookup: lookupOf(TWO),
  });
  await hop.get('/');
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 1 ended: ok 503',
    'attempt 2 of 2 started: retry to 127.0.0.2',
    'response started: 200, 0 bytes',
    'attempt 2 ended: ok 200',
    'exchange ended: 200, 2 bytes, 2 attempts, undefined',
  ]);
});

test('a hedge that wins cancels the first attempt', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
  await server(() => {}, '127.0.0.1', port);
  const lookup = lookupOf(TWO);
  const { events, hop } = observed(`http://hop.test:${port}`, { lookup, timeoutMs: 400 });
  await hop.get('/');
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 2 of 2 started: hedge to 127.0.0.2',
    'attempt 1 ended: cancelled undefined',
    'response started: 200, 0 bytes',
    'attempt 2 ended: ok 200',
    'exchange ended: 200, 2 bytes, 2 attempts, undefined',
  ]);
});

test('a failed exchange ends with its error code', async () => {
  const { origin } = await rawServer((socket) => void socket.end('not HTTP at all\r\n\r\n'));
  const { events, hop } = observed(origin);
  await expect(hop.get('/')).rejects.toMatchObject({ code: 'http_protocol_error' });
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 1 ended: http_protocol_error undefined',
    'exchange ended: undefined, 0 bytes, 1 attempts, http_protocol_error',
  ]);
});

test('a truncated body ends the exchange with the status and the bytes that arrived', async () => {
  const { origin } = await rawServer(
    (socket) => void socket.end('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf'),
  );
  const { events, hop } = observed(origin);
  await expect(hop.get('/')).rejects.toMatchObject({ code: 'http_response_incomplete', statusCode: 200 });
  expect(events.slice(-2)).toEqual([
    'attempt 1 ended: http_response_incomplete 200',
    'exchange ended: 200, 4 bytes, 1 attempts, http_response_incomplete',
  ]);
});

test('when the deadline passes, attempt and exchange end with http_response_timeout', async () => {
  const { origin } = await server(() => {});
  const { events, hop } = observed(origin, { timeoutMs: 100 });
  const request = hop.request({ path: '/', method: 'POST' });
  await expect(request).rejects.toMatchObject({ code: 'http_response_timeout' });
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 1 ended: http_response_timeout undefined',
    'exchange ended: undefined, 0 bytes, 1 attempts, http_response_timeout',
  ]);
});

test('an abort by the caller ends attempt and exchange as cancelled, without an error', async () => {
  const { origin } = await server(() => {});
  const { events, hop } = observed(origin);
  await expect(hop.get('/', { signal: AbortSignal.timeout(50) })).rejects.toThrow();
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.1',
    'attempt 1 ended: cancelled undefined',
    'exchange ended: undefined, 0 bytes, 1 attempts, undefined, cancelled',
  ]);
});

test('a probe of an ejected address is reported, but not as an attempt', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
  const { events, hop } = observed(`http://hop.test:${port}`, { lookup: lookupOf(TWO) });
  for (let i = 0; i < 2; i++) await hop.get('/');
  await sleep(1100);
  events.length = 0;
  await hop.get('/');
  expect(events).toEqual([
    'attempt 1 of 1 started: first to 127.0.0.2',
    'probe to 127.0.0.1',
    'response started: 200, 0 bytes',
    'attempt 1 ended: ok 200',
    'exchange ended: 200, 2 bytes, 1 attempts, undefined',
  ]);
});

test('a request whose allowProbe is false is not copied to an ejected address', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
  const { events, hop } = observed(`http://hop.test:${port}`, { lookup: lookupOf(TWO) });
  for (let i = 0; i < 2; i++) await hop.get('/');
  await sleep(1100);
  await hop.get('/', { allowProbe: false });
  const { body } = await hop.request({ path: '/', method: 'GET', allowProbe: false });
  await body.dump();
  expect(events).not.toContain('probe to 127.0.0.1');
  await hop.get('/');
  expect(events).toContain('probe to 127.0.0.1');
});

test('changes of the circuit are reported: open after failures, half-open and closed by a success', async () => {
  const port = await closedPort();
  const { events, hop } = observed(`http://127.0.0.1:${port}`);
  for (let i = 0; i < 40; i++) await hop.get('/').catch(() => {});
  const changes = () => events.filter((event) => event.startsWith('circuit'));
  expect(changes()).toEqual(['circuit open']);
  expect(hop.circuit).toBe('open');
  expect(events.at(-1)).toBe('exchange ended: undefined, 0 bytes, 0 attempts, destination_unavailable');
  await server((_req, res) => void res.end(), '127.0.0.1', port);
  await sleep(1000);
  await hop.get('/');
  expect(changes()).toEqual(['circuit open', 'circuit half-open', 'circuit closed']);
});

describe('headers that the observer adds', () => {
  const addHeader: Observer = { attemptStarted: ({ number }) => ['traceparent', `attempt-${number}`] };

  test.each<[string, Dispatcher.DispatchOptions['headers']]>([
    ['an array', ['x-one', '1', 'x-two', '2']],
    ['an object', { 'x-one': '1', 'x-two': '2' }],
    ['an object with an array and undefined', { 'x-one': ['1'], 'x-two': '2', 'x-none': undefined }],
    [
      'a Map',
      new Map([
        ['x-one', '1'],
        ['x-two', '2'],
      ]),
    ],
    ['Headers', new Headers({ 'x-one': '1', 'x-two': '2' })],
  ])('are sent with those of the request when these are %s', async (_kind, headers) => {
    const { origin } = await server((req, res) => {
      const { 'x-one': one, 'x-two': two, 'x-none': none, traceparent } = req.headers;
      res.end([one, two, none, traceparent].join());
    });
    const hop = client(origin, { observer: addHeader });
    expect((await hop.get('/', { headers: headers ?? null })).text()).toBe('1,2,,attempt-1');
  });

  test('are sent when the request has no headers', async () => {
    const { origin } = await server((req, res) => void res.end(req.headers.traceparent));
    const hop = client(origin, { observer: addHeader });
    expect((await hop.get('/')).text()).toBe('attempt-1');
  });

  test.each<[string, unknown]>([
    ['an odd array', ['x-one']],
    ['an object with an invalid value', { 'x-one': { nested: true } }],
  ])('do not prevent undici from rejecting headers that are %s', async (_kind, headers) => {
    const { origin } = await server((_req, res) => void res.end());
    const hop = client(origin, { observer: addHeader });
    const response = hop.get('/', { headers: headers as string[] });
    await expect(response).rejects.toMatchObject({ code: 'UND_ERR_INVALID_ARG' });
  });

  test('differ for each attempt of an exchange', async () => {
    const seen: unknown[] = [];
    const { origin } = await server((req, res) => {
      seen.push(req.headers.traceparent);
      if (seen.length > 1) res.end();
    });
    await client(origin, { observer: addHeader, timeoutMs: 400 }).get('/');
    await until(() => seen.length === 2);
    expect(seen).toEqual(['attempt-1', 'attempt-2']);
  });
});
