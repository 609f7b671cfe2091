import { once } from 'node:events';
import type { IncomingMessage } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { lookUpAll, NextHop, NextHopError, type NextHopOptions } from 'next-hop';
import { generate } from 'selfsigned';
import { buildConnector } from 'undici';
import { closedPort } from '../../../test/stub-upstream';
import { lookupOf, sleep, testClients, until } from './clients';

const { client, server, rawServer, cleanUp } = testClients();

const INVALID = { name: 'InvalidArgumentError', code: 'UND_ERR_INVALID_ARG' };

describe('the constructor', () => {
  test.each([
    '',
    'hop.test',
    'ftp://hop.test',
    'http://hop.test/path',
    'http://hop.test?query',
    'http://hop.test/#hash',
    'http://user@hop.test',
  ])('throws when the origin is %p', (origin) => {
    expect(() => new NextHop(origin)).toThrow(expect.objectContaining(INVALID));
  });

  test.each<NextHopOptions>([
    { timeoutMs: 0 },
    { timeoutMs: -1 },
    { timeoutMs: Number.NaN },
    { timeoutMs: Number.POSITIVE_INFINITY },
    { timeoutMs: 2 ** 31 },
    { connections: 0 },
    { connections: 0.5 },
    { lookupIntervalMs: 0 },
    { lookupIntervalMs: Number.NaN },
    { lookup: '127.0.0.1' as never },
    { factory: {} as never },
  ])('throws when an option is %p', (options) => {
    expect(() => new NextHop('http://hop.test', options)).toThrow(expect.objectContaining(INVALID));
  });

  test('uses the host name as the name by default', () => {
    expect(client('http://hop.test:8080').name).toBe('hop.test');
    expect(client('http://hop.test:8080', { name: 'books' }).name).toBe('books');
  });
});

describe('a request', () => {
  test.each(['http://other.test', 'not a URL', new URL('https://127.0.0.1')])(
    'fails with an argument error when its origin is %p',
    async (origin) => {
      const hop = client('http://127.0.0.1:1');
      const response = hop.request({ origin, path: '/', method: 'GET' });
      await expect(response).rejects.toMatchObject(INVALID);
    },
  );

  test('succeeds when its origin has another spelling', async () => {
    const { origin } = await server((_req, res) => void res.end('ok'));
    const hop = client(origin);
    for (const own of [origin, `${origin}/`, new URL(origin), origin.replace('http', 'HTTP')]) {
      const { body } = await hop.request({ origin: own, path: '/', method: 'GET' });
      expect(await body.text()).toBe('ok');
    }
  });

  test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31])(
    'fails with an argument error when its timeoutMs is %p',
    async (timeoutMs) => {
      await expect(client('http://127.0.0.1:1').get('/', { timeoutMs })).rejects.toMatchObject(INVALID);
    },
  );

  test('fails with an argument error when its method is CONNECT or it is an upgrade', async () => {
    const hop = client('http://127.0.0.1:1');
    await expect(hop.connect({ origin: 'http://127.0.0.1:1', path: '/' })).rejects.toMatchObject(INVALID);
    await expect(hop.upgrade({ path: '/' })).rejects.toMatchObject(INVALID);
  });

  test('fails with an argument error when its path is invalid, which does not count as a failure', async () => {
    const { origin } = await server((_req, res) => void res.end());
    const hop = client(origin);
    for (let i = 0; i < 20; i++) await expect(hop.get('no slash')).rejects.toMatchObject(INVALID);
    expect(hop.circuit).toBe('closed');
  });

  test.each([
    ['an empty string', ''],
    ['an empty buffer', Buffer.alloc(0)],
  ])('is retried when it is a GET with %s as body', async (_kind, body) => {
    let requests = 0;
    const { origin } = await server((req, res) => void (++requests > 1 ? res.end() : req.socket.destroy()));
    const { statusCode } = await client(origin).request({ path: '/', method: 'GET', body });
    expect([statusCode, requests]).toEqual([200, 2]);
  });

  test('calls its callback when one is given', async () => {
    const { origin } = await server((_req, res) => void res.end('ok'));
    const hop = client(origin);
    const statusCode = await new Promise((resolve) =>
      hop.request({ path: '/', method: 'GET' }, (_error, data) => {
        data.body.dump();
        resolve(data.statusCode);
      }),
    );
    expect(statusCode).toBe(200);
  });

  test('has its own deadline when it has a timeoutMs', async () => {
    const { origin } = await server((_req, res) => void setTimeout(() => res.end('slow'), 300));
    const hop = client(origin, { timeoutMs: 100 });
    expect((await hop.get('/', { timeoutMs: 1000 })).text()).toBe('slow');
    const startMs = performance.now();
    const patient = client(origin, { timeoutMs: 5000 });
    await expect(patient.get('/', { timeoutMs: 100 })).rejects.toMatchObject({
      code: 'http_response_timeout',
    });
    expect(performance.now() - startMs).toBeLessThan(280);
    const request = patient.request({ path: '/', method: 'POST', timeoutMs: 100 });
    await expect(request).rejects.toMatchObject({ code: 'http_response_timeout' });
  });
});

describe('get', () => {
  test.each([200, 204, 301, 404, 500, 503])(
    'keeps headers and body when the status is %i',
    async (status) => {
      const { origin } = await server(
        (_req, res) => void res.writeHead(status, { 'x-own': 'yes' }).end('{"a":1}'),
      );
      const response = await client(origin).get('/');
      expect([response.statusCode, response.ok]).toEqual([status, status < 300]);
      expect(response.headers['x-own']).toBe('yes');
      if (status !== 204) expect(response.json()).toEqual({ a: 1 });
    },
  );

  test('rejects with the reason and sends nothing when its signal has aborted', async () => {
    const hop = await server((_req, res) => void res.end());
    const reason = new Error('left');
    const response = client(hop.origin).get('/', { signal: AbortSignal.abort(reason) });
    await expect(response).rejects.toBe(reason);
    expect(hop.requests()).toBe(0);
  });

  test.each(['before the headers', 'during the body'])(
    'rejects with the reason and closes the connection when its signal aborts %s',
    async (when) => {
      const requests: IncomingMessage[] = [];
      const { origin } = await server((req, res) => {
        requests.push(req);
        if (when === 'during the body') res.write('half');
      });
      const controller = new AbortController();
      const response = client(origin).get('/', { signal: controller.signal });
      const rejected = expect(response).rejects.toThrow('left');
      await until(() => requests.length === 1);
      const closed = once(requests[0]?.socket as TLSSocket, 'close');
      await sleep(20);
      controller.abort(new Error('left'));
      await rejected;
      await closed;
    },
  );

  test.each([
    { signal: new AbortController() as never },
    { signal: {} as never },
    { maxBodyBytes: Number.NaN },
    { maxBodyBytes: -1 },
  ])('rejects with an argument error when its options are %p', async (options) => {
    const { origin } = await server((_req, res) => void res.end());
    await expect(client(origin).get('/', options)).rejects.toMatchObject(INVALID);
  });

  test('accepts null as its signal, like fetch', async () => {
    const { origin } = await server((_req, res) => void res.end('ok'));
    expect((await client(origin).get('/', { signal: null as never })).text()).toBe('ok');
  });

  test('rejects with the error of undici when its headers are invalid, which does not open the circuit', async () => {
    const { origin } = await server((_req, res) => void res.end('ok'));
    const hop = client(origin);
    const invalid = { a: Symbol('invalid') } as never;
    for (let i = 0; i < 32; i++)
      await expect(hop.get('/', { headers: invalid })).rejects.toMatchObject({ name: 'TypeError' });
    expect((await hop.get('/')).text()).toBe('ok');
  });

  test('accepts the content coding identity in any case', async () => {
    const { origin } = await server((_req, res) => {
      res.writeHead(200, { 'content-encoding': 'Identity' }).end('ok');
    });
    expect((await client(origin).get('/')).text()).toBe('ok');
  });

  test('does not count aborted requests as failures, even if the reason is an error from another next hop', async () => {
    const { origin } = await server(() => {});
    const hop = client(origin);
    const controller = new AbortController();
    const requests = Array.from({ length: 32 }, () => hop.get('/', { signal: controller.signal }));
    controller.abort(new NextHopError('connection_refused', 'other'));
    for (const response of requests) await expect(response).rejects.toThrow('other: connection_refused');
    expect(hop.circuit).toBe('closed');
  });

  test('removes its listener from the signal when it ends', async () => {
    const { origin } = await server((req, res) => void (req.url === '/' ? res.end() : req.socket.destroy()));
    const listeners = new Set<() => void>();
    const signal = {
      aborted: false,
      addEventListener: (_type: 'abort', listener: () => void) => void listeners.add(listener),
      removeEventListener: (_type: 'abort', listener: () => void) => void listeners.delete(listener),
    };
    const hop = client(origin);
    const response = hop.get('/', { signal });
    expect(listeners.size).toBe(1);
    await response;
    await hop.get('/fails', { signal }).catch(() => {});
    expect(listeners.size).toBe(0);
  });

  test.each([
    ['with a content-length', { 'content-length': '11' }],
    ['without a content-length', {}],
  ])('rejects a body %s that is larger than maxBodyBytes', async (_kind, headers) => {
    const { origin } = await server((_req, res) => void res.writeHead(200, headers).end('eleven byte'));
    const hop = client(origin);
    const failure = { name: 'NextHopError', code: 'http_response_body_size', statusCode: 200 };
    await expect(hop.get('/', { maxBodyBytes: 10 })).rejects.toMatchObject(failure);
    expect((await hop.get('/', { maxBodyBytes: 11 })).text()).toBe('eleven byte');
  });

  test('rejects a body that is larger than 1 MiB by default', async () => {
    const MEBIBYTE = 1024 * 1024;
    const { origin } = await server((req, res) => void res.end(Buffer.alloc(Number(req.url?.slice(1)))));
    const hop = client(origin);
    expect((await hop.get(`/${MEBIBYTE}`)).bodyBytes).toBe(MEBIBYTE);
    await expect(hop.get(`/${MEBIBYTE + 1}`)).rejects.toMatchObject({ code: 'http_response_body_size' });
  });

  test('rejects with a NextHopError with code, name and cause', async () => {
    const { origin } = await server((req) => req.socket.destroy());
    const error = await client(origin, { name: 'books' })
      .get('/')
      .catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(NextHopError);
    expect(error).toMatchObject({
      message: 'books: connection_terminated',
      code: 'connection_terminated',
      nextHop: 'books',
      statusCode: undefined,
      cause: { code: 'UND_ERR_SOCKET' },
    });
  });
});

describe('the option connect', () => {
  const certificate = (name: string) =>
    generate([{ name: 'commonName', value: name }], {
      keySize: 2048,
      extensions: [{ name: 'subjectAltName', altNames: [{ type: 2, value: name }] }],
    });

  async function tlsServer(options: object = {}, listenPort = 0) {
    const { private: key, cert } = await certificate('hop.test');
    const tls = createServer({ key, cert, ...options }, (req, res) => {
      const peer = (req.socket as TLSSocket).getPeerCertificate();
      res.end(peer.subject?.CN);
    }).listen(listenPort, '127.0.0.1');
    await once(tls, 'listening');
    cleanUp(() => tls.close());
    const { port } = tls.address() as AddressInfo;
    return { origin: `https://hop.test:${port}`, cert, lookup: lookupOf(['127.0.0.1']) };
  }

  test('with a CA accepts a certificate that the CA has signed; without it the request fails', async () => {
    const { origin, cert, lookup } = await tlsServer();
    expect((await client(origin, { lookup, connect: { ca: cert } }).get('/')).statusCode).toBe(200);
    await expect(client(origin, { lookup }).get('/')).rejects.toMatchObject({
      code: 'tls_certificate_error',
    });
  });

  test('with a CA still rejects a certificate for another host name', async () => {
    const { origin, cert, lookup } = await tlsServer();
    const other = client(origin.replace('hop.test', 'other.test'), { lookup, connect: { ca: cert } });
    await expect(other.get('/')).rejects.toMatchObject({ code: 'tls_certificate_error' });
  });

  test('with a client certificate sends it; without it a server that requires one refuses the connection', async () => {
    const mine = await certificate('my-service');
    const { origin, cert, lookup } = await tlsServer({ requestCert: true, ca: mine.cert });
    const connect = { ca: cert, cert: mine.cert, key: mine.private };
    expect((await client(origin, { lookup, connect }).get('/')).text()).toBe('my-service');
    await expect(client(origin, { lookup, connect: { ca: cert } }).get('/')).rejects.toThrow(NextHopError);
  });

  test('closes the circuit when a next hop returns whose certificate matches only the Host header', async () => {
    const { private: key, cert } = await certificate('hop.test');
    const port = await closedPort();
    const options = { lookup: lookupOf(['127.0.0.1']), connect: { ca: cert } };
    const hop = client(`https://other.test:${port}`, options);
    const get = () => hop.get('/', { headers: { host: 'hop.test' } });
    const isClosed = () => hop.circuit === 'closed';
    while (isClosed()) await get().catch(() => {});
    await tlsServer({ key, cert }, port);
    const startMs = performance.now();
    while (!isClosed()) await get().catch(() => {});
    // Less than the second after which a probe would close it.
    expect(performance.now() - startMs).toBeLessThan(900);
    expect((await get()).statusCode).toBe(200);
  });

  test('over TLS, concurrent requests open connections at the same time', async () => {
    // A server that never answers the handshake.
    const silent = await rawServer(() => {});
    const hop = client(silent.origin.replace('http:', 'https:'));
    const requests = Array.from({ length: 8 }, () => hop.get('/').catch(() => {}));
    await until(() => silent.connections() === 8, 200);
    await Promise.all(requests);
  });

  test('accepts a connector, which receives each address', async () => {
    const { port } = await server((_req, res) => void res.end('ok'));
    const connectNow = buildConnector({});
    const targets: (string | undefined)[] = [];
    const hop = client(`http://hop.test:${port}`, {
      lookup: lookupOf(['127.0.0.2', '127.0.0.1']),
      connect: (target, callback) => {
        targets.push(target.hostname, target.host);
        connectNow(target, callback);
      },
    });
    for (let i = 0; i < 2; i++) expect((await hop.get('/')).text()).toBe('ok');
    expect(new Set(targets)).toEqual(new Set(['127.0.0.1', '127.0.0.2', `hop.test:${port}`]));
  });

  test('a connection that was established while this process was busy is used, even after a quarter of the deadline', async () => {
    const { origin, connections } = await server((_req, res) => void res.end('ok'));
    const hop = client(origin, { timeoutMs: 400 });
    const response = hop.request({ path: '/', method: 'POST' });
    for (let i = 0; i < 10; i++) await new Promise(process.nextTick);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 150);
    expect((await response).statusCode).toBe(200);
    expect(connections()).toBe(1);
  });

  test('a connector that fails with a TypeError opens the circuit', async () => {
    const connect: buildConnector.connector = (_target, callback) =>
      callback(new TypeError('no proxy'), null);
    const hop = client('http://127.0.0.1:1', { connect });
    await expect(hop.get('/')).rejects.toMatchObject({
      name: 'NextHopError',
      cause: { message: 'no proxy' },
    });
    for (let i = 0; i < 16; i++) await hop.get('/').catch(() => {});
    expect(hop.circuit).toBe('open');
  });

  test('a connector that never calls back times out after a quarter of the deadline', async () => {
    const hop = client('http://127.0.0.1:1', { timeoutMs: 400, connect: () => {} });
    const startMs = performance.now();
    const options = { path: '/', method: 'POST' } as const;
    await expect(hop.request(options)).rejects.toMatchObject({ code: 'connection_timeout' });
    expect(performance.now() - startMs).toBeLessThan(250);
  });
});

describe('the option lookup', () => {
  test('with an invalid result fails requests with dns_error, and is the cause of failures while the circuit is open', async () => {
    for (const found of [['127.0.0.1'], [{ host: '127.0.0.1' }], '127.0.0.1']) {
      const lookup = (async () => found) as unknown as NextHopOptions['lookup'] & {};
      const hop = client('http://hop.test', { lookup });
      const cause = { message: '`lookup` must resolve to an array of `{ address, family }` objects' };
      await expect(hop.get('/')).rejects.toMatchObject({ code: 'dns_error', cause });
      while (hop.circuit !== 'open') await hop.get('/').catch(() => {});
      await expect(hop.get('/')).rejects.toMatchObject({ code: 'destination_unavailable', cause });
    }
  });

  test('resolves the host name of the origin', async () => {
    const { port } = await server((_req, res) => void res.end('ok'));
    const names: string[] = [];
    const lookup = async (name: string) => {
      names.push(name);
      return lookUpAll('127.0.0.1');
    };
    expect((await client(`http://hop.test:${port}`, { lookup }).get('/')).text()).toBe('ok');
    expect(names[0]).toBe('hop.test');
  });

  test('that fails makes requests fail with its error code and cause', async () => {
    const cause = Object.assign(new Error('unknown'), { code: 'ENOTFOUND' });
    const hop = client('http://hop.test', { lookup: () => Promise.reject(cause) });
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'dns_error', cause });
  });

  test('that never resolves makes requests fail with dns_timeout by the deadline', async () => {
    const hop = client('http://hop.test', { timeoutMs: 200, lookup: () => new Promise(() => {}) });
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'dns_timeout' });
  });

  test('that finds no address makes requests fail with dns_error', async () => {
    const hop = client('http://hop.test', { lookup: lookupOf([]) });
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'dns_error' });
  });
});

describe('close', () => {
  test('waits for active requests, and rejects new ones', async () => {
    const { origin } = await server((_req, res) => void setTimeout(() => res.end('slow'), 100));
    const hop = client(origin);
    const active = hop.get('/');
    let isClosed = false;
    const closing = hop.close().then(() => {
      isClosed = true;
    });
    expect(hop.closed).toBe(true);
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'UND_ERR_CLOSED' });
    expect(isClosed).toBe(false);
    expect((await active).text()).toBe('slow');
    await closing;
    expect(hop.destroyed).toBe(true);
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'UND_ERR_DESTROYED' });
  });

  test('closes idle connections', async () => {
    const closed: Promise<unknown>[] = [];
    const { origin } = await server((req, res) => {
      closed.push(once(req.socket, 'close'));
      res.end();
    });
    const hop = client(origin);
    await hop.get('/');
    await hop.close();
    await Promise.all(closed);
  });

  test('calls its callback when it has closed', async () => {
    const hop = client('http://127.0.0.1:1');
    await new Promise<void>((resolve) => hop.close(resolve));
    expect(hop.closed).toBe(true);
  });

  test('rejects when the client is destroyed', async () => {
    const hop = client('http://127.0.0.1:1');
    await hop.destroy();
    await expect(hop.close()).rejects.toMatchObject({ code: 'UND_ERR_DESTROYED' });
  });

  test('resolves when the client is destroyed in the meantime', async () => {
    const { origin } = await server(() => {});
    const hop = client(origin);
    const failed = expect(hop.get('/')).rejects.toMatchObject({ code: 'UND_ERR_DESTROYED' });
    const closing = hop.close();
    await hop.destroy();
    await closing;
    await failed;
  });
});

describe('destroy', () => {
  const reason = new Error('shutting down');

  test('fails active requests with its error: queued, waiting, and reading', async () => {
    const { origin } = await server((req, res) => void (req.url === '/reading' && res.write('half')));
    const hop = client(origin, { connections: 2 });
    const active = ['/reading', '/waiting', '/queued', '/queued'].map((path) => hop.get(path));
    const failed = Promise.all(active.map((request) => expect(request).rejects.toBe(reason)));
    await sleep(50);
    await hop.destroy(reason);
    await failed;
    expect([hop.destroyed, hop.circuit]).toEqual([true, 'closed']);
    await expect(hop.get('/')).rejects.toMatchObject({ code: 'UND_ERR_DESTROYED' });
  });

  test('immediately fails a request that waits for the lookup', async () => {
    const hop = client('http://hop.test', { timeoutMs: 5000, lookup: () => new Promise(() => {}) });
    const failed = expect(hop.get('/')).rejects.toBe(reason);
    const startMs = performance.now();
    await hop.destroy(reason);
    await failed;
    expect(performance.now() - startMs).toBeLessThan(500);
  });

  test('calls its callback, with and without an error', async () => {
    const hop = client('http://127.0.0.1:1');
    await new Promise<void>((resolve) => hop.destroy(reason, resolve));
    await new Promise<void>((resolve) => hop.destroy(resolve));
    expect(hop.destroyed).toBe(true);
  });
});

describe('addresses', () => {
  const two = ['127.0.0.1', '127.0.0.2'];

  test('stats has the statistics of each address', async () => {
    const { port } = await server((_req, res) => void setTimeout(() => res.end(), 100), '127.0.0.1');
    await server((_req, res) => void setTimeout(() => res.end(), 100), '127.0.0.2', port);
    const hop = client(`http://hop.test:${port}`, { lookup: lookupOf(two) });
    const responses = Array.from({ length: 4 }, () => hop.get('/'));
    await sleep(50);
    expect(Object.keys(hop.stats)).toEqual(two);
    const busy = { connected: 2, free: 0, pending: 0, queued: 0, running: 2, size: 2 };
    expect(hop.stats).toEqual({ '127.0.0.1': busy, '127.0.0.2': busy });
    await Promise.all(responses);
    expect(hop.stats['127.0.0.1']).toMatchObject({ connected: 2, running: 0, size: 0 });
  });

  test('addresses in use are kept if there are more addresses than connections', async () => {
    const { port } = await server((_req, res) => void res.end(), '127.0.0.1');
    let known = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];
    let lookups = 0;
    const lookup = () => {
      lookups++;
      return lookupOf(known)();
    };
    const hop = client(`http://hop.test:${port}`, { lookup, lookupIntervalMs: 20, connections: 2 });
    await hop.get('/');
    expect(Object.keys(hop.stats).sort()).toEqual(two);
    known = known.toReversed();
    const before = lookups;
    await until(() => lookups > before + 2);
    expect(Object.keys(hop.stats).sort()).toEqual(two);
  });

  test('an address that refuses connections is replaced if there are more addresses than connections', async () => {
    const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.2');
    const options = { lookup: lookupOf(two), lookupIntervalMs: 20, connections: 1 };
    const hop = client(`http://hop.test:${port}`, options);
    await hop.get('/').catch(() => {});
    await until(() => hop.stats['127.0.0.2'] !== undefined, 2000);
    expect((await hop.get('/')).text()).toBe('ok');
  });

  test('ejectedAddresses has an address that refuses connections until it accepts them again', async () => {
    const { port } = await server((_req, res) => void res.end(), '127.0.0.1');
    const hop = client(`http://hop.test:${port}`, { lookup: lookupOf(two) });
    expect(hop.ejectedAddresses).toEqual([]);
    for (let i = 0; i < 3; i++) await hop.get('/');
    expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
    await server((_req, res) => void res.end(), '127.0.0.2', port);
    await sleep(1000);
    await hop.get('/');
    await until(() => hop.ejectedAddresses.length === 0, 1000);
  });

  test('connections to an address that the name no longer resolves to are closed within 5 s', async () => {
    const closedAfterMs: number[] = [];
    let removedMs = 0;
    const { port } = await server((_req, res) => void res.end(), '127.0.0.1');
    await server(
      (req, res) => {
        req.socket.once('close', () => closedAfterMs.push(performance.now() - removedMs));
        res.end();
      },
      '127.0.0.2',
      port,
    );
    let known = two;
    const hop = client(`http://hop.test:${port}`, { lookup: () => lookupOf(known)() });
    await Promise.all(Array.from({ length: 8 }, () => hop.get('/')));
    known = two.slice(0, 1);
    removedMs = performance.now();
    await until(() => closedAfterMs.length === 4, 6000);
    expect(Math.max(...closedAfterMs)).toBeLessThan(5000);
    expect(Object.keys(hop.stats)).toEqual(known);
  });

  test('a response from an address that the name no longer resolves to is read to its end', async () => {
    let known = two.slice(1);
    const { port } = await server((_req, res) => void res.end('new'), '127.0.0.1');
    await server((_req, res) => void setTimeout(() => res.end('old'), 300), '127.0.0.2', port);
    const lookup = () => lookupOf(known)();
    const hop = client(`http://hop.test:${port}`, { lookup, lookupIntervalMs: 100, timeoutMs: 2000 });
    const response = hop.get('/');
    await sleep(50);
    known = two.slice(0, 1);
    expect((await response).text()).toBe('old');
    let text = 'old';
    for (let i = 0; i < 10 && text === 'old'; i++) text = (await hop.get('/')).text();
    expect(text).toBe('new');
  });
});

test('a NextHop without active requests does not keep the process running', async () => {
  const { origin } = await rawServer(
    (socket) => void socket.write('HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n'),
  );
  const before = process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
  const hop = client(origin);
  await hop.get('/');
  const after = process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
  expect(after).toBe(before);
});
