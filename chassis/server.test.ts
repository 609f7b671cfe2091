import { once } from 'node:events';
import { connect } from 'node:net';
import { listen, serverFor, TIMEOUTS } from './server';

test.each([
  ['says nothing', ''],
  ['sends half a header', 'GET / HTTP/1.1\r\nhost: a\r\nx-slow'],
  ['sends half a body', 'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf'],
])('a client that %s is cut off', async (_what, bytes) => {
  const server = serverFor((req) => void req.resume(), {
    ...TIMEOUTS,
    headersTimeout: 200,
    requestTimeout: 300,
    connectionsCheckingInterval: 50,
  });
  const port = await listen(server, '127.0.0.1', 0);
  const startedMs = performance.now();
  const client = connect(port, '127.0.0.1', () => client.write(bytes));
  client.resume();
  await once(client, 'close');
  expect(performance.now() - startedMs).toBeLessThan(1000);
  server.close();
});

test('the time-outs are checked often enough to hold, and idle connections outlast those of the client', () => {
  expect(TIMEOUTS.connectionsCheckingInterval).toBeLessThanOrEqual(TIMEOUTS.headersTimeout / 5);
  expect(TIMEOUTS.keepAliveTimeout).toBeGreaterThan(60_000);
});
