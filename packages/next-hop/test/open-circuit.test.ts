import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import type { NextHop, NextHopError, NextHopOptions } from 'next-hop';
import { buildConnector, Pool } from 'undici';
import { closedPort, rawUpstream } from '../../../test/stub-upstream';
import { lookupOf, sleep, testClients, until } from './clients';

const { cleanUp, client, server } = testClients();

const THREE = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];
const systemConnector = buildConnector({});

/** A connector whose attempts to connect to some addresses hang. It counts the attempts. */
function connectorHangingAt(...hanging: string[]) {
  const attempts: Record<string, number> = {};
  const connect: buildConnector.connector = (target, callback) => {
    attempts[target.hostname] = (attempts[target.hostname] ?? 0) + 1;
    if (!hanging.includes(target.hostname)) systemConnector(target, callback);
  };
  return { connect, attempts };
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
  test('when it refuses connections, requests fail with destination_unavailable within milliseconds, and the cause is the refusal', async () => {
    const { hop } = await withOpenCircuit();
    for (let i = 0; i < 20; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toMatchObject({ code: 'destination_unavailable', cause: { code: 'ECONNREFUSED' } });
      expect(ms).toBeLessThan(20);
    }
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
    const { hop, listen } = await withOpenCircuit({ connect, lookup: lookupOf(THREE) });
    await listen('127.0.0.2');
    await sleep(5);
    const results = await Promise.all(Array.from({ length: 20 }, () => measure(hop)));
    for (const { outcome, ms } of results) {
      expect(outcome).toBe('ok');
      expect(ms).toBeLessThan(100);
    }
  });

  test('when attempts to connect hang, requests fail within 25 ms, with a timeout as the cause', async () => {
    const { connect } = connectorHangingAt('127.0.0.1');
    const { hop } = await withOpenCircuit({ connect });
    const results = [];
    for (let i = 0; i < 30; i++) {
      results.push(measure(hop));
      await sleep(50);
    }
    const measured = await Promise.all(results);
    for (const { outcome } of measured)
      expect(outcome).toMatchObject({
        code: 'destination_unavailable',
        cause: { code: 'UND_ERR_CONNECT_TIMEOUT' },
      });
    expect(measured.filter(({ ms }) => ms > 60).length).toBeLessThanOrEqual(2);
  });

  test('when a connection takes longer than requests wait for it, later requests succeed', async () => {
    const slow: buildConnector.connector = (target, callback) =>
      void setTimeout(() => systemConnector(target, callback), 60);
    const { hop, listen } = await withOpenCircuit({ connect: slow });
    await listen();
    expect((await measure(hop)).outcome).toMatchObject({ code: 'destination_unavailable' });
    await sleep(100);
    expect((await measure(hop)).outcome).toBe('ok');
  });

  test('requests share the attempts to connect: at most one every 4 ms to an address that refuses connections', async () => {
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

  test('at most one every 25 ms to an address that does not answer', async () => {
    const { connect, attempts } = connectorHangingAt('127.0.0.1');
    const { hop } = await withOpenCircuit({ connect });
    attempts['127.0.0.1'] = 0;
    const startedMs = performance.now();
    while (performance.now() < startedMs + 500) {
      void measure(hop);
      await sleep(1);
    }
    expect(attempts['127.0.0.1']).toBeGreaterThan(5);
    expect(attempts['127.0.0.1']).toBeLessThanOrEqual((performance.now() - startedMs) / 25 + 1);
  });

  test('when it accepts connections and does not respond, the circuit opens again for a second', async () => {
    const { hop, port } = await withOpenCircuit({ timeoutMs: 200 });
    const silent = await rawUpstream(() => {}, '127.0.0.1', port);
    cleanUp(() => silent.close());
    expect((await measure(hop)).outcome).toMatchObject({ code: 'http_response_timeout' });
    expect(hop.circuit).toBe('open');
    const requests = silent.requests();
    for (let i = 0; i < 10; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toMatchObject({ code: 'destination_unavailable' });
      expect(ms).toBeLessThan(20);
    }
    expect(silent.requests()).toBe(requests);
    await sleep(1000);
    expect((await measure(hop)).outcome).toMatchObject({ code: 'http_response_timeout' });
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

  test('destroy ends attempts to connect that hang', async () => {
    const sockets: Socket[] = [];
    // A TLS handshake that never ends.
    const mute = createServer((socket) => void sockets.push(socket.on('error', () => {}).resume())).listen(
      0,
      '127.0.0.1',
    );
    await once(mute, 'listening');
    cleanUp(() => mute.close());
    const hop = client(`https://127.0.0.1:${(mute.address() as AddressInfo).port}`, { timeoutMs: 2000 });
    await openCircuit(hop);
    await until(() => sockets.every(({ destroyed }) => destroyed));
    await measure(hop);
    expect(sockets.filter(({ destroyed }) => !destroyed)).toHaveLength(1);
    await hop.destroy();
    await until(() => sockets.every(({ destroyed }) => destroyed), 200);
  });
});

test('a next hop whose name resolves again is used within 400 ms, although the circuit is open', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.1');
  let isGone = true;
  const lookup = async () => {
    if (isGone) throw Object.assign(new Error('unknown'), { code: 'ENOTFOUND' });
    return [{ address: '127.0.0.1', family: 4 }];
  };
  const hop = client(`http://hop.test:${port}`, { lookup });
  await openCircuit(hop);
  await sleep(300);
  expect((await measure(hop)).outcome).toMatchObject({
    code: 'destination_unavailable',
    cause: { code: 'ENOTFOUND' },
  });
  isGone = false;
  const backMs = performance.now();
  while ((await measure(hop)).outcome !== 'ok') await sleep(5);
  expect(performance.now() - backMs).toBeLessThan(400);
});

describe('an address that is added', () => {
  async function withAddedAddress(options: NextHopOptions = {}) {
    const { port } = await server((_req, res) => void res.end('old'), '127.0.0.1');
    await server((_req, res) => void res.end('added'), '127.0.0.2', port);
    let addresses = ['127.0.0.1'];
    const lookup = () => lookupOf(addresses)();
    const hop = client(`http://hop.test:${port}`, { lookup, lookupIntervalMs: 50, ...options });
    await measure(hop);
    addresses = ['127.0.0.1', '127.0.0.2'];
    await until(() => Object.keys(hop.stats).length === 2);
    return hop;
  }

  test('gets no requests while attempts to connect to it hang', async () => {
    const hop = await withAddedAddress(connectorHangingAt('127.0.0.2'));
    for (let i = 0; i < 20; i++) {
      const { outcome, ms } = await measure(hop);
      expect(outcome).toBe('old');
      expect(ms).toBeLessThan(100);
    }
    expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
  });

  test('gets its share as soon as a connection to it is established', async () => {
    const hop = await withAddedAddress();
    await until(() => hop.ejectedAddresses.length === 0, 200);
    const outcomes = [];
    for (let i = 0; i < 10; i++) outcomes.push((await measure(hop)).outcome);
    expect(outcomes.filter((outcome) => outcome === 'added')).toHaveLength(5);
  });
});
