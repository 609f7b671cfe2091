import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Program, programStarter } from './programs';
import { httpUpstream, type StubUpstream } from './stub-upstream';

const startProgram = programStarter();
let upstream: StubUpstream;

beforeEach(async () => {
  upstream = await httpUpstream((_req, res) => void res.end('ok'));
});

afterEach(() => upstream.close());

const CONNECTION_CLOSE = /\r\nconnection: close\r\n/i;
const REQUEST = 'GET /hello HTTP/1.1\r\nhost: a\r\n\r\n';

/** A client that reuses its connection until the server closes it. */
class Client {
  private socket: Socket | undefined;
  private pending: { resolve(text: string): void; reject(error: Error): void; text: string } | undefined;

  constructor(private readonly port: () => number) {}

  /** Resolves to the response, or rejects if the connection ends without a complete one. */
  get() {
    this.socket ??= this.open();
    this.socket.write(REQUEST);
    return new Promise<string>((resolve, reject) => {
      this.pending = { resolve, reject, text: '' };
    });
  }

  close() {
    this.socket?.end();
    this.socket = undefined;
  }

  private open() {
    const socket = connect(this.port(), '127.0.0.1').setNoDelay(true);
    const ended = (error: Error) => {
      if (this.socket !== socket) return;
      this.socket = undefined;
      this.pending?.reject(error);
    };
    socket.on('data', (data) => this.read(String(data)));
    socket.on('error', ended).on('end', () => ended(new Error('closed without a response')));
    return socket;
  }

  private read(data: string) {
    const { pending } = this;
    if (pending === undefined) throw new Error(`unexpected data: ${data}`);
    pending.text += data;
    if (!pending.text.endsWith('\r\n\r\nok')) return;
    this.pending = undefined;
    if (CONNECTION_CLOSE.test(pending.text)) this.close();
    pending.resolve(pending.text);
  }
}

const startApi = (drainMs: number) =>
  startProgram('api', { API2_URL: upstream.origin, DRAIN_MS: String(drainMs) });

async function whileSuspended(program: Program, forMs: number, action: () => void) {
  program.child.kill('SIGSTOP');
  action();
  await sleep(forMs);
  program.child.kill('SIGCONT');
}

test('after SIGTERM, a response has Connection: close and its connection is closed', async () => {
  const program = await startApi(1000);
  const client = connect(program.port, '127.0.0.1', () => client.write(REQUEST));
  const [before] = await once(client, 'data');
  expect(String(before)).not.toMatch(CONNECTION_CLOSE);
  const stopped = program.stop();
  await sleep(100);
  client.write(REQUEST);
  let text = '';
  for await (const data of client) text += data;
  expect(text).toMatch(/^HTTP\/1\.1 200 .*\r\n\r\nok$/s);
  expect(text).toMatch(CONNECTION_CLOSE);
  expect(await new Client(() => program.port).get()).toMatch(CONNECTION_CLOSE);
  expect(await stopped).toBe(0);
});

test('after SIGTERM, only the last response to pipelined requests has Connection: close', async () => {
  const program = await startApi(1000);
  const stopped = program.stop();
  await sleep(100);
  const client = connect(program.port, '127.0.0.1', () => client.write(REQUEST.repeat(3)));
  let text = '';
  for await (const data of client) text += data;
  expect(text.match(/HTTP\/1\.1 200/g)).toHaveLength(3);
  expect(text.match(/\r\nconnection: close\r\n/gi)).toHaveLength(1);
  expect(await stopped).toBe(0);
});

test('after SIGTERM, a client that is still sending its body can read its last response', async () => {
  const program = await startApi(1000);
  const stopped = program.stop();
  await sleep(100);
  const client = connect(program.port, '127.0.0.1');
  const errors: unknown[] = [];
  client.on('error', (error) => errors.push(error));
  client.write('POST /hello HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n');
  for (let i = 0; i < 20; i++) {
    client.write('x'.repeat(1000));
    await sleep(10);
  }
  let text = '';
  for await (const data of client) text += data;
  expect(text).toMatch(/^HTTP\/1\.1 405 .*"code":"method_not_allowed"/s);
  expect(text).toMatch(CONNECTION_CLOSE);
  expect(errors).toEqual([]);
  expect(await stopped).toBe(0);
});

test('requests and connections that arrive just before the drain ends all succeed', async () => {
  const program = await startApi(1500);
  const port = () => program.port;
  const kept = Array.from({ length: 50 }, () => new Client(port));
  await Promise.all(kept.map((client) => client.get()));
  const fresh = Array.from({ length: 50 }, () => new Client(port));
  const stopped = program.stop();
  await sleep(100);
  // When resumed, the process sees the end of the drain and the requests together.
  const responses: Promise<string>[] = [];
  await whileSuspended(program, 1600, () => {
    for (const client of [...kept, ...fresh]) responses.push(client.get());
  });
  const outcomes = await Promise.allSettled(responses);
  expect(outcomes.filter(({ status }) => status === 'rejected')).toEqual([]);
  expect(await stopped).toBe(0);
});

test('idle connections are closed when the drain ends, and do not delay the exit', async () => {
  const program = await startApi(300);
  const clients = Array.from({ length: 20 }, () => new Client(() => program.port));
  await Promise.all(clients.map((client) => client.get()));
  const startedMs = performance.now();
  expect(await program.stop()).toBe(0);
  expect(performance.now() - startedMs).toBeLessThan(900);
});

test('three rollouts under load on 32 kept-alive connections lose no request', async () => {
  let current = await startApi(1000);
  let { port } = current;
  const idle = Array.from({ length: 32 }, () => new Client(() => port));
  const clients = [...idle];
  const failures: string[] = [];
  let sent = 0;
  const startedMs = performance.now();
  const load = setInterval(() => {
    const due = ((performance.now() - startedMs) / 1000) * 500;
    for (; sent < due && idle.length > 0; sent++) {
      const [client] = idle.splice(Math.floor(Math.random() * idle.length), 1) as [Client];
      client
        .get()
        .catch((error) => failures.push(String(error)))
        .finally(() => idle.push(client));
    }
  }, 2);
  for (let i = 0; i < 3; i++) {
    const next = await startApi(1000);
    await sleep(300);
    const stopped = current.stop();
    // In a cluster, new connections are routed to other pods only after a moment.
    await sleep(400);
    port = next.port;
    expect(await stopped).toBe(0);
    current = next;
  }
  clearInterval(load);
  await sleep(200);
  for (const client of clients) client.close();
  expect(failures).toEqual([]);
  expect(sent).toBeGreaterThan(1500);
});
