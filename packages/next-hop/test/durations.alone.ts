// Tests with tight time limits, which need an otherwise idle machine.
import type { NextHop, NextHopError } from 'next-hop';
import { sleep, testClients } from './clients';

const { client, server } = testClients();

/** Sends a GET, and resolves to the text of its response or its error code, and its duration. */
async function measure(hop: NextHop) {
  const startedMs = performance.now();
  const outcome = await hop.get('/').then(
    (response) => response.text(),
    (error: NextHopError) => error.code,
  );
  return { outcome, ms: performance.now() - startedMs };
}

test('500 requests to a hanging next hop fail by the deadline, and requests succeed within two seconds of its recovery', async () => {
  let hangs = true;
  const { origin } = await server((_req, res) => void (hangs || res.end('ok')));
  const hop = client(origin, { timeoutMs: 1000 });
  const results = await Promise.all(Array.from({ length: 500 }, () => measure(hop)));
  for (const { outcome, ms } of results) {
    expect(['http_response_timeout', 'connection_limit_reached']).toContain(outcome);
    expect(ms).toBeLessThan(1500);
  }
  hangs = false;
  const recoveredMs = performance.now();
  while ((await measure(hop)).outcome !== 'ok') await sleep(20);
  expect(performance.now() - recoveredMs).toBeLessThan(2000);
});

test('a next hop whose name resolves again is used within 400 ms, although the circuit is open', async () => {
  const { port } = await server((_req, res) => void res.end('ok'), '127.0.0.1');
  let isGone = true;
  const lookup = async () => {
    if (isGone) throw Object.assign(new Error('unknown'), { code: 'ENOTFOUND' });
    return [{ address: '127.0.0.1', family: 4 }];
  };
  const hop = client(`http://hop.test:${port}`, { lookup });
  while (hop.circuit !== 'open') await Promise.all(Array.from({ length: 16 }, () => measure(hop)));
  await sleep(300);
  await expect(hop.get('/')).rejects.toMatchObject({
    code: 'destination_unavailable',
    cause: { code: 'ENOTFOUND' },
  });
  isGone = false;
  const backMs = performance.now();
  while ((await measure(hop)).outcome !== 'ok' && performance.now() < backMs + 1000) await sleep(5);
  expect(performance.now() - backMs).toBeLessThan(400);
});
