import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import { Worker } from 'node:worker_threads';
import { closedPort, httpUpstream, rawUpstream, type StubUpstream } from '../../../test/stub-upstream';
import { NextHop, type NextHopOptions } from './next-hop';
import type { Observer } from './observer';

const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function clientOf(origin: string, options: NextHopOptions = {}) {
  const hop = new NextHop(origin, { timeoutMs: 1000, ...options });
  cleanups.push(() => hop.close());
  return hop;
}

async function ask(hop: NextHop) {
  const startedMs = performance.now();
  const outcome = await hop.get('/').then(
    (answer) => answer.text(),
    (error: { code: string }) => error.code,
  );
  return { outcome, ms: performance.now() - startedMs };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** The same port on several loopback addresses, each answering with its own. */
async function replicas(...hosts: string[]): Promise<StubUpstream[]> {
  const hops: StubUpstream[] = [];
  for (const host of hosts)
    hops.push(await httpUpstream((_req, res) => void res.end(host), host, hops[0]?.port ?? 0));
  cleanups.push(() => Promise.all(hops.map((hop) => hop.close())));
  return hops;
}

const addressesOf = (hosts: readonly string[]) => async () =>
  hosts.map((address) => ({ address, family: 4 }));

async function counts(hop: NextHop, requests: number) {
  const seen: Record<string, number> = {};
  for (let i = 0; i < requests; i++) {
    const { outcome } = await ask(hop);
    seen[outcome] = (seen[outcome] ?? 0) + 1;
  }
  return seen;
}

describe('spreading', () => {
  const three = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];

  test('requests go to all addresses of the name in equal shares', async () => {
    const [first] = await replicas(...three);
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: addressesOf(three) });
    expect(await counts(hop, 30)).toEqual({ '127.0.0.1': 10, '127.0.0.2': 10, '127.0.0.3': 10 });
  });

  test('a replica that comes gets its share, one that goes gets no more', async () => {
    const [first] = await replicas(...three);
    let known = three.slice(0, 2);
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: () => addressesOf(known)() });
    await counts(hop, 4);
    known = three.slice(1);
    await sleep(2200);
    expect(await counts(hop, 10)).toEqual({ '127.0.0.2': 5, '127.0.0.3': 5 });
  });

  test('an address that refuses is left at once, and comes back', async () => {
    const [first, second] = await replicas('127.0.0.1', '127.0.0.2');
    const hop = clientOf(`http://hop.test:${first?.port}`, {
      lookup: addressesOf(['127.0.0.1', '127.0.0.2']),
    });
    await counts(hop, 4);
    await second?.close();
    expect(await counts(hop, 20)).toEqual({ '127.0.0.1': 20 });
    await sleep(1100);
    const again = await httpUpstream((_req, res) => void res.end('127.0.0.2'), '127.0.0.2', first?.port);
    cleanups.push(() => again.close());
    const deadlineMs = performance.now() + 5000;
    let shares: Record<string, number> = {};
    while (shares['127.0.0.2'] === undefined && performance.now() < deadlineMs) shares = await counts(hop, 4);
    expect(await counts(hop, 4)).toEqual({ '127.0.0.1': 2, '127.0.0.2': 2 });
  });

  test('an address that hangs costs a quarter of the deadline, then nothing', async () => {
    const [healthy] = await replicas('127.0.0.1');
    const frozen = await httpUpstream(() => {}, '127.0.0.2', healthy?.port);
    cleanups.push(() => frozen.close());
    const hop = clientOf(`http://hop.test:${healthy?.port}`, {
      lookup: addressesOf(['127.0.0.1', '127.0.0.2']),
    });
    const results = [];
    for (let i = 0; i < 12; i++) results.push(await ask(hop));
    expect(results.map(({ outcome }) => outcome)).toEqual(new Array(12).fill('127.0.0.1'));
    const slow = results.filter(({ ms }) => ms > 200);
    expect(slow).toHaveLength(2);
    for (const { ms } of slow) expect(ms).toBeLessThan(450);
  });

  test('after 100 fast responses, an address that hangs costs less than 100 ms until it is ejected', async () => {
    let isFrozen = false;
    const hosts = ['127.0.0.1', '127.0.0.2'];
    const [healthy] = await replicas('127.0.0.1');
    const frozen = await httpUpstream((_req, res) => void (isFrozen || res.end()), hosts[1], healthy?.port);
    cleanups.push(() => frozen.close());
    const hop = clientOf(`http://hop.test:${healthy?.port}`, { lookup: addressesOf(hosts) });
    for (let i = 0; i < 100; i++) await ask(hop);
    isFrozen = true;
    const endMs = performance.now() + 800;
    const results = [];
    while (performance.now() < endMs) {
      results.push(await ask(hop));
      await sleep(10);
    }
    expect(results.map(({ outcome }) => outcome)).toEqual(results.map(() => '127.0.0.1'));
    expect(Math.max(...results.map(({ ms }) => ms))).toBeLessThan(100);
    const requests = frozen.requests();
    for (let i = 0; i < 20; i++) await ask(hop);
    expect(frozen.requests()).toBe(requests);
  });

  /** Three replicas of which those in `broken` respond 503 at once, and the others after 50 ms. */
  async function threeWithBroken(broken: ReadonlySet<string>) {
    const first = await httpUpstream((_req, res) => void res.end(), '127.0.0.1');
    await first.close();
    const counts: Record<string, number> = {};
    for (const host of three) {
      const replica = await httpUpstream(
        (_req, res) => {
          counts[host] = (counts[host] ?? 0) + 1;
          if (broken.has(host)) res.writeHead(503).end('broken');
          else setTimeout(() => res.end(host), 50);
        },
        host,
        first.port,
      );
      cleanups.push(() => replica.close());
    }
    const hop = clientOf(`http://hop.test:${first.port}`, { lookup: addressesOf(three) });
    return { hop, counts };
  }

  /** The statuses of `requests` requests at a steady 200 per second. */
  async function statuses(hop: NextHop, requests: number) {
    const responses = [];
    for (let i = 0; i < requests; i++) {
      responses.push(hop.get('/').then(({ statusCode }) => statusCode));
      await sleep(5);
    }
    return Promise.all(responses);
  }

  test('one of three that responds 503 at once costs no caller anything, and comes back when it is well', async () => {
    const broken = new Set(['127.0.0.2']);
    const { hop, counts } = await threeWithBroken(broken);
    expect(new Set(await statuses(hop, 400))).toEqual(new Set([200]));
    // Five in a row eject it; after that only probes reach it.
    expect(counts['127.0.0.2']).toBeLessThan(12);
    broken.clear();
    const before = counts['127.0.0.2'] ?? 0;
    const deadlineMs = performance.now() + 8000;
    while ((counts['127.0.0.2'] ?? 0) < before + 20 && performance.now() < deadlineMs)
      await statuses(hop, 50);
    expect(counts['127.0.0.2']).toBeGreaterThanOrEqual(before + 20);
  });

  test('all three respond 503: every response is that status, for at most 1.25 requests each', async () => {
    const { hop, counts } = await threeWithBroken(new Set(three));
    expect(new Set(await statuses(hop, 400))).toEqual(new Set([503]));
    const sent = Object.values(counts).reduce((sum, count) => sum + count, 0);
    expect(sent).toBeGreaterThanOrEqual(400);
    expect(sent).toBeLessThanOrEqual(500);
  });

  test.each([502, 503, 504])('a %i is retried on another address, for GET and HEAD only', async (status) => {
    const hosts = ['127.0.0.1', '127.0.0.2'];
    const [good] = await replicas(hosts[0] as string);
    const bad = await httpUpstream(
      (_req, res) => void res.writeHead(status).end('bad'),
      hosts[1],
      good?.port,
    );
    cleanups.push(() => bad.close());
    const hop = clientOf(`http://hop.test:${good?.port}`, { lookup: addressesOf(hosts) });
    for (let i = 0; i < 4; i++) expect((await hop.get('/')).statusCode).toBe(200);
    expect(bad.requests()).toBeGreaterThan(0);
    const posted = [];
    for (let i = 0; i < 4; i++) {
      const { statusCode, body } = await hop.request({ method: 'POST', path: '/' });
      await body.dump();
      posted.push(statusCode);
    }
    expect(posted).toContain(status);
  });

  test('a discarded 503 that ends in a reset does not end its retry', async () => {
    const hosts = ['127.0.0.1', '127.0.0.2'];
    const slow = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 200), hosts[0]);
    cleanups.push(() => slow.close());
    const bad = await rawUpstream(
      (socket) => {
        socket.write('HTTP/1.1 503 Service Unavailable\r\n\r\nhalf');
        setTimeout(() => socket.resetAndDestroy(), 60);
      },
      hosts[1],
      slow.port,
    );
    cleanups.push(() => bad.close());
    const hop = clientOf(`http://hop.test:${slow.port}`, { lookup: addressesOf(hosts) });
    for (let i = 0; i < 4; i++) expect((await ask(hop)).outcome).toBe('slow');
    expect(bad.requests()).toBeGreaterThan(0);
  });

  test.each([500, 501, 505, 429])('a %i is never retried', async (status) => {
    const hosts = ['127.0.0.1', '127.0.0.2'];
    const [good] = await replicas(hosts[0] as string);
    const bad = await httpUpstream((_req, res) => void res.writeHead(status).end(), hosts[1], good?.port);
    cleanups.push(() => bad.close());
    const hop = clientOf(`http://hop.test:${good?.port}`, { lookup: addressesOf(hosts) });
    const seen = [];
    for (let i = 0; i < 4; i++) seen.push((await hop.get('/')).statusCode);
    expect(seen.sort()).toEqual([200, 200, status, status]);
  });

  test('no more connections than told are opened, all addresses together', async () => {
    const hops = await replicas(...three);
    const hop = clientOf(`http://hop.test:${hops[0]?.port}`, { lookup: addressesOf(three), connections: 6 });
    await Promise.all(new Array(100).fill(0).map(() => ask(hop)));
    expect(hops.reduce((sum, { connections }) => sum + connections(), 0)).toBeLessThanOrEqual(6);
  });
});

describe('retries', () => {
  test('none of 1000 requests is lost to a next hop that closes idle connections at random', async () => {
    let closings = 0;
    const idle = new Map<Socket, NodeJS.Timeout>();
    const closeIdle = (socket: Socket) => {
      closings++;
      if (Math.random() < 0.5) socket.resetAndDestroy();
      else socket.end();
    };
    const server = await rawUpstream((socket) => {
      clearTimeout(idle.get(socket));
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok');
      if (Math.random() < 0.3) idle.set(socket, setTimeout(closeIdle, Math.random() * 5, socket));
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    const outcomes: string[] = [];
    const ten = Array.from({ length: 10 }, async () => {
      for (let i = 0; i < 100; i++) {
        outcomes.push((await ask(hop)).outcome);
        await sleep(Math.random() * 5);
      }
    });
    await Promise.all(ten);
    expect(closings).toBeGreaterThan(20);
    expect(outcomes.filter((outcome) => outcome !== 'ok')).toEqual([]);
    expect(outcomes).toHaveLength(1000);
  });

  test('a dead next hop sees at most 1.25 requests for each one', async () => {
    const server = await rawUpstream((socket) => void socket.resetAndDestroy());
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    for (let i = 0; i < 100; i++) await ask(hop);
    expect(server.requests()).toBeGreaterThan(0);
    expect(server.requests()).toBeLessThanOrEqual(125);
  });

  test('a 503 of a lone next hop is the response, and is not retried', async () => {
    const server = await httpUpstream((_req, res) => void res.writeHead(503).end());
    cleanups.push(() => server.close());
    const answer = await clientOf(server.origin).get('/');
    expect(answer.statusCode).toBe(503);
    expect(server.requests()).toBe(1);
  });

  test('a request is asked again at most twice', async () => {
    const server = await rawUpstream((socket) => void socket.resetAndDestroy());
    cleanups.push(() => server.close());
    expect((await ask(clientOf(server.origin))).outcome).toBe('connection_terminated');
    expect(server.requests()).toBe(3);
  });

  test('a lone next hop whose first answer hangs is asked once more', async () => {
    let requests = 0;
    const server = await httpUpstream((_req, res) => void (++requests > 1 && res.end('second')));
    cleanups.push(() => server.close());
    const { outcome, ms } = await ask(clientOf(server.origin));
    expect(outcome).toBe('second');
    expect(ms).toBeGreaterThan(200);
    expect(ms).toBeLessThan(500);
  });

  test('what waits for a connection of our own is not asked for again', async () => {
    const slow = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 200));
    cleanups.push(() => slow.close());
    const hop = clientOf(slow.origin, { connections: 1 });
    const outcomes = await Promise.all([1, 2, 3, 4].map(() => ask(hop)));
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(new Array(4).fill('slow'));
    expect(slow.requests()).toBe(4);
  });

  test('a request that had to wait for a connection is hedged when its own response is slow', async () => {
    let hung = 0;
    const server = await httpUpstream((req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end(), 100);
      else if (req.url !== '/hang' || ++hung > 1) res.end('ok');
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 2 });
    for (let i = 0; i < 100; i++) await ask(hop);
    const slow = [hop.get('/slow'), hop.get('/slow')];
    const startedMs = performance.now();
    expect((await hop.get('/hang')).text()).toBe('ok');
    expect(performance.now() - startedMs).toBeLessThan(250);
    expect(performance.now() - startedMs).toBeGreaterThan(95);
    await Promise.all(slow);
  });

  test('responses that arrive while this process is busy are not hedged', async () => {
    const responses = new Int32Array(new SharedArrayBuffer(4));
    const program = `const { parentPort, workerData } = require('node:worker_threads');
      const server = require('node:http').createServer((req, res) => res.end('ok', () => Atomics.add(workerData, 0, 1)));
      server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));`;
    const worker = new Worker(program, { eval: true, workerData: responses });
    cleanups.push(() => worker.terminate());
    const [port] = await once(worker, 'message');
    const kinds = new Set<string>();
    const observer: Observer = { attemptStarted: ({ kind }) => void kinds.add(kind) };
    const hop = clientOf(`http://127.0.0.1:${port}`, { observer });
    for (let i = 0; i < 100; i++) await ask(hop);
    for (let i = 0; i < 20; i++) {
      const response = ask(hop);
      // undici sends the request now.
      await new Promise(setImmediate);
      const sentMs = performance.now();
      const isWaiting = () => Atomics.load(responses, 0) <= 100 + i && performance.now() < sentMs + 2000;
      while (isWaiting() || performance.now() < sentMs + 20);
      await response;
    }
    expect([...kinds]).toEqual(['first']);
  });

  test('a slow next hop still has the whole deadline', async () => {
    const server = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 800));
    cleanups.push(() => server.close());
    expect((await ask(clientOf(server.origin))).outcome).toBe('slow');
  });
});

describe('what one exchange must not spoil', () => {
  test('a 503 of the only address is the response, although an earlier attempt is still in flight', async () => {
    let requests = 0;
    const server = await httpUpstream((_req, res) => void (++requests > 1 && res.writeHead(503).end()));
    cleanups.push(() => server.close());
    expect((await clientOf(server.origin).get('/')).statusCode).toBe(503);
  });

  test('request bodies that the caller destroys do not open the circuit', async () => {
    const server = await httpUpstream((req, res) => void req.resume().on('end', () => res.end()));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    for (let i = 0; i < 20; i++) {
      const body = new PassThrough();
      const sent = hop.request({ method: 'POST', path: '/', body });
      body.write('part');
      setTimeout(() => body.destroy(), 5);
      await expect(sent).rejects.toThrow();
    }
    expect(hop.circuit).toBe('closed');
  });

  test('a streamed body is destroyed if its request is never sent', async () => {
    const lookup = () => Promise.reject(Object.assign(new Error('unknown'), { code: 'ENOTFOUND' }));
    const hop = clientOf('http://hop.test:1', { lookup });
    const body = new PassThrough();
    await expect(hop.request({ method: 'POST', path: '/', body })).rejects.toMatchObject({
      code: 'dns_error',
    });
    expect(body.destroyed).toBe(true);
  });

  test('a request uses the addresses of a later lookup if its own lookup fails', async () => {
    const server = await httpUpstream((_req, res) => void res.end('ok'));
    cleanups.push(() => server.close());
    let lookups = 0;
    const lookup = () =>
      ++lookups === 1
        ? sleep(1400).then(() => Promise.reject(new Error('late')))
        : Promise.resolve([{ address: '127.0.0.1', family: 4 }]);
    const hop = clientOf(server.origin, { lookup, lookupIntervalMs: 300, timeoutMs: 4000 });
    expect((await hop.get('/')).text()).toBe('ok');
  });

  test('headers from an iterator are sent with every attempt', async () => {
    const seen: unknown[] = [];
    const server = await httpUpstream((req, res) => {
      seen.push(req.headers.authorization);
      if (seen.length > 1) res.end();
    });
    cleanups.push(() => server.close());
    await clientOf(server.origin).get('/', { headers: new Map([['authorization', 'secret']]).entries() });
    expect(seen).toEqual(['secret', 'secret']);
  });
});

describe('under load', () => {
  test('500 callers of a hanging next hop are answered by the deadline, and it recovers within two seconds', async () => {
    let hangs = true;
    const server = await httpUpstream((_req, res) => void (hangs || res.end('well')));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    const results = await Promise.all(Array.from({ length: 500 }, () => ask(hop)));
    for (const { outcome, ms } of results) {
      expect(['http_response_timeout', 'connection_limit_reached']).toContain(outcome);
      expect(ms).toBeLessThan(1500);
    }
    hangs = false;
    const wellMs = performance.now();
    while ((await ask(hop)).outcome !== 'well') await sleep(20);
    expect(performance.now() - wellMs).toBeLessThan(2000);
  });

  test.each([
    ['an endless body', 'transfer-encoding: chunked', `10000\r\n${'x'.repeat(0x10000)}\r\n`],
    ['a body of 50 MB', 'content-length: 52428800', 'x'.repeat(0x10000)],
  ])('%s leaves the memory where it was', async (_what, header, chunk) => {
    const server = await rawUpstream((socket) => {
      socket.write(`HTTP/1.1 200 OK\r\n${header}\r\n\r\n`);
      const fill = () => {
        while (!socket.destroyed && socket.write(chunk));
      };
      socket.on('drain', fill);
      fill();
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    const beforeBytes = process.memoryUsage().rss;
    for (let i = 0; i < 10; i++) expect((await ask(hop)).outcome).toMatch(/body_size|unavailable/);
    expect(process.memoryUsage().rss - beforeBytes).toBeLessThan(100 * 1024 * 1024);
  });

  test('a next hop that comes late is found without a restart', async () => {
    const port = await closedPort();
    const hop = clientOf(`http://127.0.0.1:${port}`);
    for (let i = 0; i < 40; i++) await ask(hop);
    const server = await httpUpstream((_req, res) => void res.end('well'), '127.0.0.1', port);
    cleanups.push(() => server.close());
    const startedMs = performance.now();
    while ((await ask(hop)).outcome !== 'well') await sleep(20);
    expect(performance.now() - startedMs).toBeLessThan(1500);
  });

  test('a connect attempt takes at most a quarter of the deadline, so that another address has its turn', async () => {
    const port = await fullPort('127.0.0.2');
    const well = await httpUpstream((_req, res) => void res.end('well'), '127.0.0.1', port);
    cleanups.push(() => well.close());
    const hop = clientOf(`http://hop.test:${port}`, { lookup: addressesOf(['127.0.0.2', '127.0.0.1']) });
    const results = [await ask(hop), await ask(hop)];
    expect(results.map(({ outcome }) => outcome)).toEqual(['well', 'well']);
    for (const { ms } of results) expect(ms).toBeLessThan(450);
  });

  test('a next hop that takes no connections: connection_timeout by the deadline', async () => {
    const port = await fullPort('127.0.0.1');
    const { outcome, ms } = await ask(clientOf(`http://127.0.0.1:${port}`));
    expect(outcome).toBe('connection_timeout');
    expect(ms).toBeLessThan(1250);
  });
});

/** A port whose backlog is full and whose process is busy: it takes no connections, like a host that is gone. */
async function fullPort(host: string) {
  const program = `const server = require('node:net').createServer().listen({ port: 0, host: '${host}', backlog: 1 }, () => {
    require('node:fs').writeSync(1, String(server.address().port));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 15000);
  });`;
  const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [port] = await once(child.stdout, 'data');
  const fillers = Array.from({ length: 4 }, () => connect(Number(port), host).on('error', () => {}));
  cleanups.push(async () => {
    for (const filler of fillers) filler.destroy();
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  await sleep(50);
  return Number(port);
}
