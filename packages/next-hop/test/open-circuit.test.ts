import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import type { AttemptInfo, NextHop, NextHopError, NextHopOptions } from 'next-hop';
import { buildConnector, errors, Pool } from 'undici';
import { closedPort, rawUpstream } from '../../../test/stub-upstream';
import { lookupOf, sleep, testClients, until } from './clients';

const { cleanUp, client, server } = testClients();

const THREE = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];
const systemConnector = buildConnector({});

/** A connector whose attempts to connect to some addresses hang. It counts the attempts. */
function connectorHangingAt(...addresses: string[]) {
  const attempts: Record<string, number> = {};
  const hanging = new Set(addresses);
  const connect: buildConnector.connector = (target, callback) => {
    attempts[target.hostname] = (attempts[target.hostname] ?? 0) + 1;
    if (!hanging.has(target.hostname)) systemConnector(target, callback);
  };
  return { connect, attempts, hanging };
}

/** Sends a GET, and resolves to the text of its response or its error, and its duration. */
async function measure(hop: NextHop) {
  const startedMs = performance.now();
  const outcome = await hop.get('/').then(
    (response) => response.text(),
    (error: NextHopError) => error,
  );
  return { outcome, ms: performance.now() - startedMs };
}

const block = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

async function openCircuit(hop: NextHop) {
  while (hop.circuit !== 'open') await Promise.all(Array.from({ length: 16 }, () => measure(hop)));
}

async function withOpenCircuit(options: NextHopOptions & { port?: number } = {}) {
  const port = options.port ?? (await closedPort());
  const hop = client(`http://hop.test:${port}`, { lookup: lookupOf(['127.0.0.1']), ...options });
  await openCircuit(hop);
  return { hop, port, listen: (host?: string) => server((_req, res) => void res.end('ok'), host, port) };
}

describe('a next hop to which no connection can be established', () => {
  test('when it refuses connections, requests fail immediately with destination_unavailable, with ECONNREFUSED as the cause', async () => {
    const { hop } = await withOpenCircuit();
    const times = [];
    for (let i = 0; i < 20; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toMatchObject({ code: 'destination_unavailable', cause: { code: 'ECONNREFUSED' } });
      times.push(ms);
    }
    expect(median(times)).toBeLessThan(10);
  });

  test('the first request after it starts to listen succeeds, whatever its method, and closes the circuit', async () => {
    for (const method of ['GET', 'POST'] as const) {
      const { hop, listen } = await withOpenCircuit();
      await listen();
      await sleep(5);
      const { statusCode, body } = await hop.request({ path: '/', method });
      await body.dump();
      expect([statusCode, hop.circuit]).toEqual([200, 'closed']);
    }
  });

  test('when one of three addresses starts to listen and attempts to connect to the others hang, no later request fails', async () => {
    const { connect } = connectorHangingAt('127.0.0.1', '127.0.0.3');
    const timeoutMs = 4000;
    const { hop, listen } = await withOpenCircuit({ connect, lookup: lookupOf(THREE), timeoutMs });
    await listen('127.0.0.2');
    await sleep(5);
    const results = await Promise.all(Array.from({ length: 20 }, () => measure(hop)));
    for (const { outcome, ms } of results) {
      expect(outcome).toBe('ok');
      // A request to another address would take at least a quarter of the deadline, until it is hedged.
      expect(ms).toBeLessThan(timeoutMs / 8);
    }
  });

  test('when attempts to connect hang, requests fail after 25 ms, with a timeout as the cause', async () => {
    const { connect } = connectorHangingAt('127.0.0.1');
    const { hop } = await withOpenCircuit({ connect });
    const times = [];
    for (let i = 0; i < 15; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toMatchObject({
        code: 'destination_unavailable',
        cause: { code: 'UND_ERR_CONNECT_TIMEOUT' },
      });
      times.push(ms);
    }
    expect(median(times)).toBeGreaterThan(20);
    expect(median(times)).toBeLessThan(40);
  });

  test('a connection that was established while this process was busy is used, even after 25 ms', async () => {
    const { hop, listen } = await withOpenCircuit();
    await listen();
    const result = measure(hop);
    for (let i = 0; i < 10; i++) await new Promise(process.nextTick);
    block(60);
    expect((await result).outcome).toBe('ok');
  });

  test('a request whose deadline or caller ends it earlier waits no longer', async () => {
    const { connect } = connectorHangingAt('127.0.0.1');
    const { hop } = await withOpenCircuit({ connect });
    const times = [];
    for (let i = 0; i < 10; i++) {
      const startedMs = performance.now();
      await expect(hop.get('/', { timeoutMs: 2 })).rejects.toMatchObject({ code: 'destination_unavailable' });
      times.push(performance.now() - startedMs);
    }
    expect(median(times)).toBeLessThan(15);
    const reason = new Error('gone');
    const abort = new AbortController();
    const aborted = hop.get('/', { signal: abort.signal });
    abort.abort(reason);
    await expect(aborted).rejects.toBe(reason);
    expect(hop.circuit).toBe('open');
  });

  test('when connecting takes longer than 25 ms, the first request fails and later ones succeed', async () => {
    const slow: buildConnector.connector = (target, callback) =>
      void setTimeout(() => systemConnector(target, callback), 60);
    const { hop, listen } = await withOpenCircuit({ connect: slow });
    await listen();
    expect((await measure(hop)).outcome).toMatchObject({ code: 'destination_unavailable' });
    await until(() => hop.circuit === 'half-open');
    expect((await measure(hop)).outcome).toBe('ok');
  });

  test('requests share attempts to connect: at most one starts every 4 ms for an address that refuses connections', async () => {
    const { connect, attempts } = connectorHangingAt();
    const { hop } = await withOpenCircuit({ connect, lookup: lookupOf(THREE) });
    for (const address of THREE) attempts[address] = 0;
    const startedMs = performance.now();
    while (performance.now() < startedMs + 200)
      await Promise.all(Array.from({ length: 10 }, () => measure(hop)));
    for (const address of THREE) {
      expect(attempts[address]).toBeGreaterThan(5);
      expect(attempts[address]).toBeLessThanOrEqual((performance.now() - startedMs) / 4 + 1);
    }
  });

  test('at most one attempt starts every 25 ms for an address that does not respond', async () => {
    const { connect, attempts } = connectorHangingAt('127.0.0.1');
    const { hop } = await withOpenCircuit({ connect });
    attempts['127.0.0.1'] = 0;
    const startedMs = performance.now();
    while (performance.now() < startedMs + 500) {
      void measure(hop);
      await sleep(1);
    }
    const intervals = (performance.now() - startedMs) / 25;
    expect(attempts['127.0.0.1']).toBeGreaterThan(intervals / 2);
    expect(attempts['127.0.0.1']).toBeLessThanOrEqual(intervals + 1);
  });

  test('when it accepts connections, no request is rejected before the first response', async () => {
    const { hop, port } = await withOpenCircuit({ connections: 4 });
    const respond = (_req: IncomingMessage, res: ServerResponse) => void setTimeout(() => res.end('ok'), 50);
    await server(respond, '127.0.0.1', port);
    const outcomes = await Promise.all(Array.from({ length: 40 }, async () => (await measure(hop)).outcome));
    expect(outcomes).toEqual(Array.from({ length: 40 }, () => 'ok'));
  });

  test('when it accepts connections and does not respond, it gets few requests, and the circuit opens again for a second', async () => {
    const { hop, port } = await withOpenCircuit({ timeoutMs: 500, connections: 4 });
    const silent = await rawUpstream(() => {}, '127.0.0.1', port);
    cleanUp(() => silent.close());
    const first = await Promise.all(Array.from({ length: 40 }, () => measure(hop)));
    const codes = first.map(({ outcome }) => (outcome as NextHopError).code);
    expect(codes.filter((code) => code === 'http_response_timeout')).toHaveLength(4);
    expect(codes.filter((code) => code === 'connection_limit_reached')).toHaveLength(36);
    expect(silent.requests()).toBeLessThanOrEqual(8);
    expect(hop.circuit).toBe('open');
    const requests = silent.requests();
    for (let i = 0; i < 10; i++)
      expect((await measure(hop)).outcome).toMatchObject({ code: 'destination_unavailable' });
    expect(silent.requests()).toBe(requests);
    await sleep(1000);
    expect((await measure(hop)).outcome).toMatchObject({ code: 'http_response_timeout' });
  });

  test('when attempts to connect hang and most requests wait for a connection, the circuit opens', async () => {
    const { connect } = connectorHangingAt('127.0.0.1');
    const hop = client('http://127.0.0.1:9', { connect, connections: 8, timeoutMs: 400 });
    await Promise.all(Array.from({ length: 200 }, () => measure(hop)));
    expect(hop.circuit).toBe('open');
    const startedMs = performance.now();
    await hop.close();
    expect(performance.now() - startedMs).toBeLessThan(100);
  });

  test('few attempts to connect hang at the same time, however long they may take', async () => {
    let open = 0;
    const silent = createServer((socket) => {
      open++;
      socket.on('error', () => {}).on('close', () => void open--);
      socket.resume();
    }).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    cleanUp(() => silent.close());
    const options = { timeoutMs: 8000, connections: 1 };
    const hop = client(`https://127.0.0.1:${(silent.address() as AddressInfo).port}`, options);
    // Each exchange has a short deadline, so that the circuit opens soon.
    while (hop.circuit !== 'open') await hop.get('/', { timeoutMs: 10 }).catch(() => {});
    const endMs = performance.now() + 600;
    while (performance.now() < endMs) await measure(hop);
    expect(open).toBeGreaterThan(2);
    expect(open).toBeLessThanOrEqual(8);
  });

  test('a connector that throws fails the request with its error', async () => {
    const connect = () => {
      throw new Error('no certificate');
    };
    const hop = client('http://127.0.0.1:9', { connect });
    await expect(hop.get('/')).rejects.toMatchObject({ cause: { message: 'no certificate' } });
    await hop.destroy();
  });

  test('with a factory, the circuit lets a probe through after a second', async () => {
    const factory: NextHopOptions['factory'] = (origin) => new Pool(origin);
    const port = await closedPort();
    const hop = client(`http://127.0.0.1:${port}`, { factory });
    await openCircuit(hop);
    await server((_req, res) => void res.end('ok'), '127.0.0.1', port);
    expect((await measure(hop)).outcome).toMatchObject({ code: 'destination_unavailable' });
    await sleep(1000);
    expect((await measure(hop)).outcome).toBe('ok');
  });

  test('destroy ends attempts to connect, whatever error it is given', async () => {
    const { connect, attempts } = connectorHangingAt('127.0.0.1');
    const hop = client('http://127.0.0.1:9', { connect });
    const response = hop.get('/').catch((error) => error);
    await until(() => attempts['127.0.0.1'] === 1);
    const error = new errors.SocketError('gone');
    await hop.destroy(error);
    expect(await response).toBe(error);
  });

  test('destroy fails requests that wait for a connection, and ends attempts to connect', async () => {
    const sockets: Socket[] = [];
    // Never responds to a TLS handshake.
    const mute = createServer((socket) => void sockets.push(socket.on('error', () => {}).resume()));
    await once(mute.listen(0, '127.0.0.1'), 'listening');
    cleanUp(() => mute.close());
    const hop = client(`https://127.0.0.1:${(mute.address() as AddressInfo).port}`, { timeoutMs: 2000 });
    await openCircuit(hop);
    const waiting = expect(hop.get('/')).rejects.toThrow('destroyed');
    await hop.destroy();
    await waiting;
    await until(() => sockets.every(({ destroyed }) => destroyed), 200);
    expect(hop.circuit).toBe('open');
  });
});

test('when an address is added while the circuit is open because of resets, a probe closes it after a second', async () => {
  let isBroken = true;
  const { port } = await server((req, res) => void (isBroken ? req.socket.destroy() : res.end('ok')));
  await server((_req, res) => void res.end('ok'), '127.0.0.2', port);
  let addresses = ['127.0.0.1'];
  const lookup = () => lookupOf(addresses)();
  const hop = client(`http://hop.test:${port}`, { lookup, lookupIntervalMs: 20 });
  await openCircuit(hop);
  addresses = ['127.0.0.1', '127.0.0.2'];
  isBroken = false;
  await until(() => Object.keys(hop.stats).length === 2);
  await sleep(1000);
  expect((await measure(hop)).outcome).toBe('ok');
  expect(hop.circuit).toBe('closed');
});

describe('an address that is added', () => {
  async function withAddedAddress(options: NextHopOptions = {}) {
    const { port } = await server((_req, res) => void res.end('old'), '127.0.0.1');
    await server((_req, res) => void res.end('added'), '127.0.0.2', port);
    let addresses = ['127.0.0.1'];
    const lookup = () => lookupOf(addresses)();
    const hop = client(`http://hop.test:${port}`, { lookup, lookupIntervalMs: 50, ...options });
    await measure(hop);
    const add = async (address: string) => {
      addresses = [...addresses, address];
      await until(() => Object.keys(hop.stats).length === addresses.length);
    };
    await add('127.0.0.2');
    return { hop, add };
  }

  test('gets no requests while attempts to connect to it hang', async () => {
    const { connect } = connectorHangingAt('127.0.0.2');
    const timeoutMs = 4000;
    const { hop } = await withAddedAddress({ connect, timeoutMs });
    for (let i = 0; i < 20; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toBe('old');
      expect(ms).toBeLessThan(timeoutMs / 8);
    }
    expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
  });

  test('gets its share once a connection to it has been established, even if probes are not allowed', async () => {
    const { connect, hanging } = connectorHangingAt('127.0.0.2');
    const { hop } = await withAddedAddress({ connect });
    for (let i = 0; i < 10; i++) expect((await hop.get('/', { allowProbe: false })).text()).toBe('old');
    hanging.clear();
    await until(() => hop.ejectedAddresses.length === 0, 1000);
    const texts = [];
    for (let i = 0; i < 10; i++) texts.push((await hop.get('/', { allowProbe: false })).text());
    expect(texts.filter((text) => text === 'added')).toHaveLength(5);
  });

  test('keeps the result of its check when another address is added meanwhile', async () => {
    let accept = () => {};
    const connect: buildConnector.connector = (target, callback) => {
      const connectNow = () => void systemConnector(target, callback);
      if (target.hostname === '127.0.0.2') accept = connectNow;
      else connectNow();
    };
    const { hop, add } = await withAddedAddress({ connect, timeoutMs: 4000, lookupIntervalMs: 200 });
    const acceptFirst = accept;
    await add('127.0.0.3');
    acceptFirst();
    await until(() => !hop.ejectedAddresses.includes('127.0.0.2'), 150);
  });
});

test('an address is ejected when connecting to it hangs, after at most two requests, and readmitted when it accepts connections', async () => {
  const { connect, hanging } = connectorHangingAt();
  const { port } = await server((_req, res) => void res.end('good'), '127.0.0.1');
  const flaky = (_req: unknown, res: ServerResponse) => void res.end('flaky');
  const first = await server(flaky, '127.0.0.2', port);
  const addresses: string[] = [];
  const observer = { attemptStarted: ({ address }: AttemptInfo) => void addresses.push(address) };
  const lookup = lookupOf(['127.0.0.1', '127.0.0.2']);
  const options = { lookup, lookupIntervalMs: 100, connect, observer };
  const hop = client(`http://hop.test:${port}`, options);
  // The hedge delay depends on response times when 100 are known.
  for (let i = 0; i < 120; i++) await hop.get('/');
  hanging.add('127.0.0.2');
  await first.close();
  await sleep(20);
  addresses.length = 0;
  for (let i = 0; i < 40; i++) expect((await measure(hop)).outcome).toBe('good');
  expect(addresses.filter((address) => address === '127.0.0.2').length).toBeLessThanOrEqual(2);
  expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
  await server(flaky, '127.0.0.2', port);
  hanging.clear();
  await until(() => hop.ejectedAddresses.length === 0, 3000);
  const outcomes = [(await measure(hop)).outcome, (await measure(hop)).outcome];
  expect(outcomes.sort()).toEqual(['flaky', 'good']);
});

test('a hedge that wins while the first attempt connects leaves that connection to later requests', async () => {
  const { port } = await server((_req, res) => void res.end('near'), '127.0.0.1');
  const far = await server((_req, res) => void res.end('far'), '127.0.0.2', port);
  const held: (() => void)[] = [];
  let holdsFar = false;
  const connect: buildConnector.connector = (target, callback) => {
    const connectNow = () => void systemConnector(target, callback);
    if (holdsFar && target.hostname === '127.0.0.2') held.push(connectNow);
    else connectNow();
  };
  let addresses = ['127.0.0.1'];
  const lookup = () => lookupOf(addresses)();
  const hop = client(`http://hop.test:${port}`, { connect, lookup, lookupIntervalMs: 50, timeoutMs: 8000 });
  // After 100 responses, a hedge is sent after some milliseconds.
  for (let i = 0; i < 100; i++) await measure(hop);
  addresses = ['127.0.0.1', '127.0.0.2'];
  await until(() => far.connections() === 1 && hop.ejectedAddresses.length === 0);
  holdsFar = true;
  const outcomes = [];
  for (let i = 0; i < 10; i++) outcomes.push((await measure(hop)).outcome);
  expect(outcomes).toEqual(new Array(10).fill('near'));
  holdsFar = false;
  for (const connectNow of held) connectNow();
  const connections = 1 + held.length;
  await until(() => far.connections() === connections && hop.ejectedAddresses.length === 0);
  // Now the client also notices that it is connected.
  await sleep(100);
  const texts = [];
  // A probe would open a connection.
  for (let i = 0; i < 10; i++) texts.push((await hop.get('/', { allowProbe: false })).text());
  expect(texts).toContain('far');
  expect(far.connections()).toBe(connections);
});
