import { connect, type Socket } from 'node:net';
import { LoadGenerator } from './load';
import { programStarter } from './programs';

const startProgram = programStarter();
const CLIENTS = 1000;
const REQUESTS_PER_SECOND = 50;

const clients: Socket[] = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.destroy();
});

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Sends the start of an upload and stops. */
function slowUpload(port: number) {
  const socket = connect(port, '127.0.0.1').on('error', () => {});
  socket.write(
    'POST /books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n',
  );
  return socket;
}

/** Requests a page of books and reads nothing. */
function slowReader(port: number) {
  const socket = connect(port, '127.0.0.1').on('error', () => {});
  socket.pause();
  socket.write('GET /books HTTP/1.1\r\nhost: a\r\n\r\n');
  return socket;
}

test('with 1000 slow uploads and 1000 slow readers, all GET /hello and GET /books succeed, 99 % within 100 ms', async () => {
  const api2 = await startProgram('api2');
  const api = await startProgram('api', { API2_URL: api2.url });
  for (let i = 0; i < 20; i++) {
    const body = JSON.stringify({ title: '📚'.repeat(200), author: '📚'.repeat(200) });
    await fetch(`${api.url}/books`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
  }
  for (let i = 0; i < CLIENTS; i++) {
    clients.push(slowUpload(api.port), slowReader(api.port));
    if (i % 20 === 0) await sleep(20);
  }
  await sleep(1000);
  const loads = ['/hello', '/books'].map(
    (path) => new LoadGenerator(new URL(path, api.url), REQUESTS_PER_SECOND),
  );
  // Long enough that a short pause of the machine delays fewer than 1 % of the requests.
  await sleep(6000);
  const summaries = await Promise.all(loads.map((load) => load.stop()));
  const open = clients.filter((client) => !client.destroyed).length;
  const p99 = loads.map(
    ({ samples }) =>
      samples.map(({ durationMs }) => durationMs).sort((a, b) => a - b)[Math.floor(samples.length * 0.99)],
  );
  expect(open).toBe(2 * CLIENTS);
  for (const { sent, failed } of summaries) {
    expect(sent).toBeGreaterThanOrEqual(5.8 * REQUESTS_PER_SECOND);
    expect(failed).toBe(0);
  }
  for (const durationMs of p99) expect(durationMs).toBeLessThan(100);
}, 40_000);
