import type { LookupAddress } from 'node:dns';
import { NextHop } from 'next-hop';
import { closedPort, httpUpstream } from '../../../test/stub-upstream';
import { fallbackLookup } from './fallback-lookup';

const FALLBACK = '127.0.0.1';
const POD = '127.0.0.2';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function listen(host: string, port = 0) {
  const hop = await httpUpstream((_req, res) => void res.end(host), host, port);
  cleanups.push(() => hop.close());
  return hop;
}

/** Creates a client for a name whose addresses the test changes. Without addresses the name does not resolve. */
function createClient(port: number, addresses: string[] = []) {
  const name = { addresses };
  const lookup = async (hostname: string): Promise<LookupAddress[]> => {
    if (name.addresses.length > 0) return name.addresses.map((address) => ({ address, family: 4 }));
    throw Object.assign(new Error(`getaddrinfo ENOTFOUND ${hostname}`), { code: 'ENOTFOUND' });
  };
  const changes: boolean[] = [];
  const hop = new NextHop(`http://hop.test:${port}`, {
    timeoutMs: 1000,
    lookup: fallbackLookup({ host: FALLBACK, port }, (inUse) => changes.push(inUse), lookup),
    lookupIntervalMs: 50,
  });
  cleanups.push(() => hop.close());
  return { hop, name, changes };
}

function get(hop: NextHop): Promise<string> {
  return hop.get('/').then(
    (response) => response.text(),
    (error: { code: string }) => error.code,
  );
}

async function requestMany(hop: NextHop, requests: number) {
  return [...new Set(await Promise.all(Array.from({ length: requests }, () => get(hop))))];
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
// Longer than the 250 ms that the client waits between two background lookups.
const waitForNextLookup = () => sleep(600);

test('while the name does not resolve, requests are sent to the fallback; once it resolves, only to its addresses', async () => {
  const { port } = await listen(FALLBACK);
  await listen(POD, port);
  const { hop, name, changes } = createClient(port);
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
  name.addresses = [POD];
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([POD]);
  expect(changes).toEqual([true, false]);
});

test('while the name does not resolve and the fallback is down, requests fail with dns_error; once the fallback starts, the next request succeeds', async () => {
  const port = await closedPort();
  const { hop, changes } = createClient(port);
  expect(await requestMany(hop, 5)).toEqual(['dns_error']);
  await listen(FALLBACK, port);
  expect(await get(hop)).toBe(FALLBACK);
  expect(changes).toEqual([true]);
});

test('when the name stops resolving and the fallback refuses connections, the known addresses stay in use', async () => {
  const { port } = await listen(POD);
  const { hop, name, changes } = createClient(port, [POD]);
  expect(await requestMany(hop, 5)).toEqual([POD]);
  name.addresses = [];
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([POD]);
  expect(changes).toEqual([]);
});

test('when the name stops resolving and its addresses refuse connections, requests are sent to the fallback', async () => {
  const { port } = await listen(FALLBACK);
  const pod = await listen(POD, port);
  const { hop, name } = createClient(port, [POD]);
  expect(await requestMany(hop, 5)).toEqual([POD]);
  name.addresses = [];
  await pod.close();
  await waitForNextLookup();
  expect(await requestMany(hop, 20)).toEqual([FALLBACK]);
});
