import { connect, type Socket } from 'node:net';
import { Load } from './load';
import { startedPrograms } from './programs';

const started = startedPrograms();
const CLIENTS = 1000;
const PER_SECOND = 50;

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

test('1000 slow uploads and 1000 slow readers: /hello and GET /books all succeed, 99 % within 100 ms', async () => {
  const api2 = await started('api2');
  const api = await started('api', { API2_URL: api2.url });
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
  const loads = ['/hello', '/books'].map((path) => new Load(new URL(path, api.url), PER_SECOND));
  await sleep(3000);
  const outcomes = await Promise.all(loads.map((load) => load.end()));
  const open = clients.filter((client) => !client.destroyed).length;
  const p99 = loads.map(
    ({ samples }) => samples.map(({ ms }) => ms).sort((a, b) => a - b)[Math.floor(samples.length * 0.99)],
  );
  expect(open).toBe(2 * CLIENTS);
  for (const { sent, failed } of outcomes) {
    expect(sent).toBeGreaterThanOrEqual(2.8 * PER_SECOND);
    expect(failed).toBe(0);
  }
  for (const ms of p99) expect(ms).toBeLessThan(100);
}, 40_000);
