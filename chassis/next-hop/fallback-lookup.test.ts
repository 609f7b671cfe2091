import type { LookupAddress } from 'node:dns';
import { logToArray } from '../../test/app-under-test';
import { deadPort, httpHop } from '../../test/stub-hop';
import { NextHop } from './client';
import { fallbackLookup } from './fallback-lookup';

const FALLBACK = '127.0.0.1';
const POD = '127.0.0.2';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function listen(host: string, port = 0) {
  const hop = await httpHop((_req, res) => void res.end(host), host, port);
  cleanups.push(() => hop.close());
  return hop;
}

/** A client of a name whose addresses the test changes; without addresses the name does not resolve. */
function clientOf(port: number, addresses: string[] = []) {
  const name = { addresses };
  const lookup = async (hostname: string): Promise<LookupAddress[]> => {
    if (name.addresses.length > 0) return name.addresses.map((address) => ({ address, family: 4 }));
    throw Object.assign(new Error(`getaddrinfo ENOTFOUND ${hostname}`), { code: 'ENOTFOUND' });
  };
  const changes: boolean[] = [];
  const { log } = logToArray();
  const hop = new NextHop({
    name: 'hop',
    origin: `http://hop.test:${port}`,
    timeoutMs: 1000,
    connections: 64,
    lookup: fallbackLookup({ host: FALLBACK, port }, (inUse) => changes.push(inUse), lookup),
    lookupEveryMs: 50,
    log,
  });
  cleanups.push(() => hop.close());
  return { hop, name, changes };
}

function ask(hop: NextHop): Promise<string> {
  const ignore = () => {};
  const record = {
    passedOn: [],
    span: undefined,
    awaits: ignore,
    nextHopBegan: ignore,
    nextHopEnded: ignore,
  };
  return hop.get('/', record).then(
    (answer) => answer.text(),
    (error: { type: string }) => error.type,
  );
}

async function requestMany(hop: NextHop, requests: number) {
  return [...new Set(await Promise.all(Array.from({ length: requests }, () => ask(hop))))];
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
// Longer than the 250 ms that the client waits between two background lookups.
const waitForNextLookup = () => sleep(600);

test('while the name does not resolve, requests are sent to the fallback; once it resolves, only to its addresses', async () => {
  const { port } = await listen(FALLBACK);
  await listen(POD, port);
  const { hop, name, changes } = clientOf(port);
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
  name.addresses = [POD];
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([POD]);
  expect(changes).toEqual([true, false]);
});

test('while the name does not resolve and the fallback is down, requests fail with dns_error; the first after the fallback starts succeeds', async () => {
  const port = await deadPort();
  const { hop, changes } = clientOf(port);
  expect(await requestMany(hop, 5)).toEqual(['dns_error']);
  await listen(FALLBACK, port);
  expect(await ask(hop)).toBe(FALLBACK);
  expect(changes).toEqual([true]);
});

test('when the name stops resolving and the fallback refuses connections, the known addresses stay in use', async () => {
  const { port } = await listen(POD);
  const { hop, name, changes } = clientOf(port, [POD]);
  expect(await requestMany(hop, 5)).toEqual([POD]);
  name.addresses = [];
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([POD]);
  expect(changes).toEqual([]);
});

test('when the name stops resolving and its addresses refuse connections, requests are sent to the fallback', async () => {
  const { port } = await listen(FALLBACK);
  const pod = await listen(POD, port);
  const { hop, name } = clientOf(port, [POD]);
  expect(await requestMany(hop, 5)).toEqual([POD]);
  name.addresses = [];
  await pod.close();
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
});
