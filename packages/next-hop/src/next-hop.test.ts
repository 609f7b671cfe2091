import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { connect, type Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import { Worker } from 'node:worker_threads';
import { buildConnector } from 'undici';
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

/** Sends a GET, and resolves to the text of its response or its error code, and its duration. */
async function measure(hop: NextHop) {
  const startedMs = performance.now();
  const outcome = await hop.get('/').then(
    (response) => response.text(),
    (error: { code: string }) => error.code,
  );
  return { outcome, ms: performance.now() - startedMs };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Sends GETs for `ms` milliseconds, one after the other, each 10 ms after the previous response. */
async function measureFor(ms: number, hop: NextHop) {
  const endMs = performance.now() + ms;
  const results = [];
  while (performance.now() < endMs) {
    results.push(await measure(hop));
    await sleep(10);
  }
  return results;
}

/** Blocks the event loop, as a busy process would. */
const block = (ms: number) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

/** Starts servers on one port of several loopback addresses. Each responds with its own address. */
async function replicas(...hosts: string[]): Promise<StubUpstream[]> {
  const hops: StubUpstream[] = [];
  for (const host of hosts)
    hops.push(await httpUpstream((_req, res) => void res.end(host), host, hops[0]?.port ?? 0));
  cleanups.push(() => Promise.all(hops.map((hop) => hop.close())));
  return hops;
}

const addressesOf = (hosts: readonly string[]) => async () =>
  hosts.map((address) => ({ address, family: 4 }));

/** Sends GETs, and resolves to the number of each outcome. */
async function countOutcomes(hop: NextHop, requests: number) {
  const seen: Record<string, number> = {};
  for (let i = 0; i < requests; i++) {
    const { outcome } = await measure(hop);
    seen[outcome] = (seen[outcome] ?? 0) + 1;
  }
  return seen;
}

describe('several addresses', () => {
  const three = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];

  test('each address gets an equal share of the requests', async () => {
    const [first] = await replicas(...three);
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: addressesOf(three) });
    expect(await countOutcomes(hop, 30)).toEqual({ '127.0.0.1': 10, '127.0.0.2': 10, '127.0.0.3': 10 });
  });

  test('an added address gets its share, a removed one gets no more requests', async () => {
    const [first] = await replicas(...three);
    let known = three.slice(0, 2);
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: () => addressesOf(known)() });
    await countOutcomes(hop, 4);
    known = three.slice(1);
    await sleep(2200);
    expect(await countOutcomes(hop, 10)).toEqual({ '127.0.0.2': 5, '127.0.0.3': 5 });
  });

  test('an address that refuses connections is ejected immediately, and readmitted when it accepts them again', async () => {
    const [first, second] = await replicas('127.0.0.1', '127.0.0.2');
    const hop = clientOf(`http://hop.test:${first?.port}`, {
      lookup: addressesOf(['127.0.0.1', '127.0.0.2']),
    });
    await countOutcomes(hop, 4);
    await second?.close();
    expect(await countOutcomes(hop, 20)).toEqual({ '127.0.0.1': 20 });
    await sleep(1100);
    const again = await httpUpstream((_req, res) => void res.end('127.0.0.2'), '127.0.0.2', first?.port);
    cleanups.push(() => again.close());
    const deadlineMs = performance.now() + 5000;
    let shares: Record<string, number> = {};
    while (shares['127.0.0.2'] === undefined && performance.now() < deadlineMs)
      shares = await countOutcomes(hop, 4);
    expect(await countOutcomes(hop, 4)).toEqual({ '127.0.0.1': 2, '127.0.0.2': 2 });
  });

  test('a hanging address delays one or two requests by a quarter of the deadline until it is ejected', async () => {
    const [healthy] = await replicas('127.0.0.1');
    const frozen = await httpUpstream(() => {}, '127.0.0.2', healthy?.port);
    cleanups.push(() => frozen.close());
    const hop = clientOf(`http://hop.test:${healthy?.port}`, {
      lookup: addressesOf(['127.0.0.1', '127.0.0.2']),
    });
    const results = await measureFor(1000, hop);
    expect(results.map(({ outcome }) => outcome)).toEqual(results.map(() => '127.0.0.1'));
    const slow = results.filter(({ ms }) => ms > 200);
    expect(slow.length).toBeGreaterThan(0);
    expect(slow.length).toBeLessThanOrEqual(2);
    for (const { ms } of slow) expect(ms).toBeLessThan(450);
  });

  test('after 100 fast responses, an address that hangs costs less than a quarter of the deadline until it is ejected', async () => {
    let isFrozen = false;
    const hosts = ['127.0.0.1', '127.0.0.2'];
    const [healthy] = await replicas('127.0.0.1');
    const frozen = await httpUpstream((_req, res) => void (isFrozen || res.end()), hosts[1], healthy?.port);
    cleanups.push(() => frozen.close());
    const hop = clientOf(`http://hop.test:${healthy?.port}`, { lookup: addressesOf(hosts) });
    for (let i = 0; i < 100; i++) await measure(hop);
    isFrozen = true;
    const results = await measureFor(800, hop);
    expect(results.map(({ outcome }) => outcome)).toEqual(results.map(() => '127.0.0.1'));
    expect(Math.max(...results.map(({ ms }) => ms))).toBeLessThan(240);
    const requests = frozen.requests();
    for (let i = 0; i < 20; i++) await measure(hop);
    expect(frozen.requests()).toBe(requests);
  });

  test('while one of five addresses is ejected, the others get equal shares', async () => {
    const five = [...three, '127.0.0.4', '127.0.0.5'];
    const [first] = await replicas(...five.filter((host) => host !== '127.0.0.3'));
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: addressesOf(five), timeoutMs: 10_000 });
    await countOutcomes(hop, 5);
    expect(hop.ejectedAddresses).toEqual(['127.0.0.3']);
    const counts = await countOutcomes(hop, 40);
    expect(Object.values(counts).sort()).toEqual([10, 10, 10, 10]);
  });

  test('an address that responds after a third of the deadline is readmitted', async () => {
    const slow = (_req: unknown, res: ServerResponse) => void setTimeout(() => res.end(), 330);
    const first = await httpUpstream(slow, '127.0.0.1');
    cleanups.push(() => first.close());
    const hop = clientOf(`http://hop.test:${first.port}`, { lookup: addressesOf(three.slice(0, 2)) });
    for (let i = 0; i < 2; i++) expect((await measure(hop)).outcome).toBe('');
    expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
    const back = await httpUpstream(slow, '127.0.0.2', first.port);
    cleanups.push(() => back.close());
    const endMs = performance.now() + 8000;
    await sleep(1000);
    while (hop.ejectedAddresses.length > 0 && performance.now() < endMs) await measure(hop);
    expect(hop.ejectedAddresses).toEqual([]);
  });

  test('replicas that become slower than another one are hedged, but not ejected', async () => {
    let isSlow = false;
    const [fast] = await replicas('127.0.0.1');
    for (const host of three.slice(1)) {
      const slower = await httpUpstream(
        (_req, res) => void setTimeout(() => res.end(host), isSlow ? 50 : 0),
        host,
        fast?.port,
      );
      cleanups.push(() => slower.close());
    }
    const hop = clientOf(`http://hop.test:${fast?.port}`, { lookup: addressesOf(three) });
    for (let i = 0; i < 500; i++) await measure(hop);
    isSlow = true;
    const ejected = new Set<string>();
    const responses = [];
    for (let i = 0; i < 200; i++) {
      responses.push(measure(hop));
      await sleep(5);
      for (const address of hop.ejectedAddresses) ejected.add(address);
    }
    await Promise.all(responses);
    expect([...ejected]).toEqual([]);
  });

  /** Starts three replicas. Those in `broken` respond 503 immediately, the others 200 after 50 ms. */
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

  /** Sends `requests` requests at 200 per second, and resolves to the statuses of their responses. */
  async function statuses(hop: NextHop, requests: number) {
    const responses = [];
    for (let i = 0; i < requests; i++) {
      responses.push(hop.get('/').then(({ statusCode }) => statusCode));
      await sleep(5);
    }
    return Promise.all(responses);
  }

  test('when one of three responds 503 immediately, no request fails, and it is readmitted when it recovers', async () => {
    const broken = new Set(['127.0.0.2']);
    const { hop, counts } = await threeWithBroken(broken);
    expect(new Set(await statuses(hop, 400))).toEqual(new Set([200]));
    // After five in a row it is ejected, and only probes reach it.
    expect(counts['127.0.0.2']).toBeLessThan(12);
    broken.clear();
    const before = counts['127.0.0.2'] ?? 0;
    const deadlineMs = performance.now() + 8000;
    while ((counts['127.0.0.2'] ?? 0) < before + 20 && performance.now() < deadlineMs)
      await statuses(hop, 50);
    expect(counts['127.0.0.2']).toBeGreaterThanOrEqual(before + 20);
  });

  test('when one of three resets half of its connections, no request fails', async () => {
    const [first] = await replicas(...three.slice(0, 2));
    const flaky = await rawUpstream(
      (socket, request) => {
        if (request % 2 === 0) socket.resetAndDestroy();
        else socket.write('HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok');
      },
      three[2],
      first?.port,
    );
    cleanups.push(() => flaky.close());
    const hop = clientOf(`http://hop.test:${first?.port}`, { lookup: addressesOf(three) });
    expect(new Set(await statuses(hop, 600))).toEqual(new Set([200]));
    expect(flaky.requests()).toBeGreaterThan(5);
    expect(flaky.requests()).toBeLessThan(100);
  });

  test('when all three respond 503, every response is a 503, with at most 1.25 attempts per request', async () => {
    const { hop, counts } = await threeWithBroken(new Set(three));
    expect(new Set(await statuses(hop, 400))).toEqual(new Set([503]));
    const sent = Object.values(counts).reduce((sum, count) => sum + count, 0);
    expect(sent).toBeGreaterThanOrEqual(400);
    expect(sent).toBeLessThanOrEqual(500);
  });

  test.each([502, 503, 504])('a %i is retried on another address for GET, not for POST', async (status) => {
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

  test('a connection reset in a discarded 503 does not affect the retry', async () => {
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
    for (let i = 0; i < 4; i++) expect((await measure(hop)).outcome).toBe('slow');
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

  test('all addresses together get at most `connections` connections', async () => {
    const hops = await replicas(...three);
    const hop = clientOf(`http://hop.test:${hops[0]?.port}`, { lookup: addressesOf(three), connections: 6 });
    await Promise.all(new Array(100).fill(0).map(() => measure(hop)));
    expect(hops.reduce((sum, { connections }) => sum + connections(), 0)).toBeLessThanOrEqual(6);
  });
});

describe('retries', () => {
  test('none of 1000 requests fails when the next hop closes idle connections at random', async () => {
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
    const callers = Array.from({ length: 10 }, async () => {
      for (let i = 0; i < 100; i++) {
        outcomes.push((await measure(hop)).outcome);
        await sleep(Math.random() * 5);
      }
    });
    await Promise.all(callers);
    expect(closings).toBeGreaterThan(20);
    expect(outcomes.filter((outcome) => outcome !== 'ok')).toEqual([]);
    expect(outcomes).toHaveLength(1000);
  });

  test('a dead next hop gets at most 1.25 attempts per request', async () => {
    const server = await rawUpstream((socket) => void socket.resetAndDestroy());
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    for (let i = 0; i < 100; i++) await measure(hop);
    expect(server.requests()).toBeGreaterThan(0);
    expect(server.requests()).toBeLessThanOrEqual(125);
  });

  test('a 503 from the only address is the response, and is not retried', async () => {
    const server = await httpUpstream((_req, res) => void res.writeHead(503).end());
    cleanups.push(() => server.close());
    const response = await clientOf(server.origin).get('/');
    expect(response.statusCode).toBe(503);
    expect(server.requests()).toBe(1);
  });

  test('a request is retried at most twice', async () => {
    const server = await rawUpstream((socket) => void socket.resetAndDestroy());
    cleanups.push(() => server.close());
    expect((await measure(clientOf(server.origin))).outcome).toBe('connection_terminated');
    expect(server.requests()).toBe(3);
  });

  test('a request is hedged on the only address when its first attempt hangs', async () => {
    let requests = 0;
    const server = await httpUpstream((_req, res) => void (++requests > 1 && res.end('second')));
    cleanups.push(() => server.close());
    const { outcome, ms } = await measure(clientOf(server.origin));
    expect(outcome).toBe('second');
    expect(ms).toBeGreaterThan(200);
    expect(ms).toBeLessThan(500);
  });

  test('a request that is queued for a connection is not hedged', async () => {
    const slow = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 200));
    cleanups.push(() => slow.close());
    const hop = clientOf(slow.origin, { connections: 1 });
    const outcomes = await Promise.all([1, 2, 3, 4].map(() => measure(hop)));
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(new Array(4).fill('slow'));
    expect(slow.requests()).toBe(4);
  });

  test('a hedge is sent later if all connections to the other address are busy when it is due', async () => {
    const slow = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 1300), '127.0.0.1');
    cleanups.push(() => slow.close());
    const frozen = await httpUpstream(() => {}, '127.0.0.2', slow.port);
    cleanups.push(() => frozen.close());
    const lookup = addressesOf(['127.0.0.1', '127.0.0.2']);
    const hop = clientOf(`http://hop.test:${slow.port}`, { lookup, connections: 2, timeoutMs: 4000 });
    const results = await Promise.all([measure(hop), measure(hop)]);
    expect(results.map(({ outcome }) => outcome)).toEqual(['slow', 'slow']);
    expect([slow.requests(), frozen.requests()]).toEqual([2, 1]);
  });

  test('a response that arrived while this process was busy is used even if the deadline has passed', async () => {
    const server = await httpUpstream((_req, res) => {
      res.end('ok');
      if (server.requests() > 1) setImmediate(() => block(1200));
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin);
    for (const method of ['GET', 'GET', 'POST'] as const) {
      const { body } = await hop.request({ path: '/', method });
      expect(await body.text()).toBe('ok');
    }
    expect(server.requests()).toBe(3);
  });

  test('a 503 that arrived while this process was busy is returned if no time is left for a retry', async () => {
    const respond = (_req: unknown, res: ServerResponse) => {
      res.writeHead(503).end();
      setImmediate(() => block(1200));
    };
    const first = await httpUpstream(respond, '127.0.0.1');
    const second = await httpUpstream(respond, '127.0.0.2', first.port);
    cleanups.push(() => Promise.all([first.close(), second.close()]));
    const lookup = addressesOf(['127.0.0.1', '127.0.0.2']);
    const hop = clientOf(`http://hop.test:${first.port}`, { lookup });
    expect((await hop.get('/')).statusCode).toBe(503);
  });

  test('a request that gets a connection only after its deadline, because this process was busy, is not sent', async () => {
    const paths: unknown[] = [];
    const server = await httpUpstream((req, res) => {
      paths.push(req.url);
      setTimeout(() => {
        res.end('ok');
        setImmediate(() => block(700));
      }, 100);
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 1, timeoutMs: 500 });
    const first = hop.request({ path: '/first', method: 'POST' });
    const second = hop.request({ path: '/second', method: 'POST' });
    await expect(second).rejects.toMatchObject({ code: 'connection_limit_reached' });
    expect(await (await first).body.text()).toBe('ok');
    await sleep(200);
    expect(paths).toEqual(['/first']);
  });

  test('the 200 of a hedge is preferred to a 503 if both arrived while this process was busy', async () => {
    const held: ServerResponse[] = [];
    const bad = await httpUpstream((_req, res) => void held.push(res.writeHead(503)), '127.0.0.2');
    const respond = (_req: unknown, res: ServerResponse) => {
      held[0]?.end();
      res.end('ok');
      setImmediate(() => block(1200));
    };
    const good = await httpUpstream(respond, '127.0.0.1', bad.port);
    cleanups.push(() => Promise.all([bad.close(), good.close()]));
    const lookup = addressesOf(['127.0.0.2', '127.0.0.1']);
    const hop = clientOf(`http://hop.test:${bad.port}`, { lookup });
    expect((await hop.get('/')).text()).toBe('ok');
    expect(bad.requests()).toBe(1);
  });

  test('a POST is not sent after its deadline, even on an idle connection', async () => {
    const server = await httpUpstream((_req, res) => void res.end('ok'));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { timeoutMs: 300 });
    await measure(hop);
    await sleep(50);
    const post = hop.request({ path: '/', method: 'POST' });
    block(500);
    await expect(post).rejects.toMatchObject({ code: 'http_response_timeout' });
    await sleep(200);
    expect(server.requests()).toBe(1);
  });

  test('a POST that was sent after a long wait for a connection fails with http_response_timeout', async () => {
    const server = await httpUpstream((_req, res) => void setTimeout(() => res.end(), 300));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 1, timeoutMs: 500 });
    const first = hop.get('/');
    const second = hop.request({ path: '/', method: 'POST' });
    await expect(second).rejects.toMatchObject({ code: 'http_response_timeout' });
    expect((await first).statusCode).toBe(200);
    expect(server.requests()).toBe(2);
  });

  test('requests that this process could not send before the deadline do not open the circuit', async () => {
    const server = await httpUpstream((_req, res) => void res.end('ok'));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { timeoutMs: 300 });
    const measureMany = () => Promise.all(Array.from({ length: 32 }, () => measure(hop)));
    await measureMany();
    await sleep(50);
    const late = measureMany();
    block(500);
    for (const { outcome } of await late) expect(outcome).toBe('http_response_timeout');
    expect(hop.circuit).toBe('closed');
  });

  test('a retry that waited for a connection is hedged', async () => {
    const three = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];
    let gets = 0;
    const respond = (req: { method?: string | undefined }, res: ServerResponse) => {
      if (req.method === 'POST') return void setTimeout(() => res.end(), 400);
      gets++;
      if (gets === 1) res.writeHead(503).end();
      else if (gets === 3) res.end('ok');
    };
    const servers: StubUpstream[] = [];
    for (const host of three) servers.push(await httpUpstream(respond, host, servers[0]?.port ?? 0));
    cleanups.push(() => Promise.all(servers.map((server) => server.close())));
    const hop = clientOf(`http://hop.test:${servers[0]?.port}`, {
      lookup: addressesOf(three),
      connections: 3,
    });
    const posts = [1, 2].map(() => hop.request({ path: '/', method: 'POST' }));
    expect((await measure(hop)).outcome).toBe('ok');
    expect(gets).toBe(3);
    await Promise.all(posts);
  });

  test.each([
    ['responds 503', (_req: unknown, res: ServerResponse) => void res.writeHead(503).end()],
    ['closes connections', (_req: unknown, res: ServerResponse) => void res.destroy()],
  ])('when one of three hangs and another one %s, no request fails', async (_what, fails) => {
    const listeners = [() => {}, fails, (_req: unknown, res: ServerResponse) => void res.end('ok')];
    const three = ['127.0.0.1', '127.0.0.2', '127.0.0.3'];
    const servers: StubUpstream[] = [];
    for (const [i, listener] of listeners.entries())
      servers.push(await httpUpstream(listener, three[i], servers[0]?.port ?? 0));
    cleanups.push(() => Promise.all(servers.map((server) => server.close())));
    for (let i = 0; i < 8; i++) {
      const hop = clientOf(`http://hop.test:${servers[0]?.port}`, { lookup: addressesOf(three) });
      expect(await countOutcomes(hop, 3)).toEqual({ ok: 3 });
    }
  });

  test('a hedge whose reused connection was closed is retried on a new one, although the first attempt still hangs', async () => {
    const two = ['127.0.0.1', '127.0.0.2'];
    let hangs = false;
    const first = await httpUpstream((_req, res) => void (hangs || res.end('ok')), two[0]);
    const used = new Set<unknown>();
    const second = await httpUpstream(
      (req, res) => {
        if (hangs && used.has(req.socket)) return void res.destroy();
        used.add(req.socket);
        res.end('ok');
      },
      two[1],
      first.port,
    );
    cleanups.push(() => Promise.all([first.close(), second.close()]));
    const hop = clientOf(`http://hop.test:${first.port}`, { lookup: addressesOf(two) });
    await countOutcomes(hop, 2);
    hangs = true;
    expect(await countOutcomes(hop, 1)).toEqual({ ok: 1 });
  });

  test('a late response that is cut off while a retry is scheduled fails immediately', async () => {
    const four = ['127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4'];
    let late: ServerResponse | undefined;
    let requests = 0;
    const respond = (_req: unknown, res: ServerResponse) => {
      requests++;
      late ??= res;
      if (requests === 2 || requests === 3) res.writeHead(503).end();
      if (requests !== 3) return;
      const respondLate = () => {
        late?.writeHead(200, { 'content-length': 100 }).write('abc');
        setTimeout(() => late?.destroy(), 1);
      };
      // Two turns of the event loop later, the client has read the 503.
      setImmediate(() => setImmediate(respondLate));
    };
    const servers: StubUpstream[] = [];
    for (const host of four) servers.push(await httpUpstream(respond, host, servers[0]?.port ?? 0));
    cleanups.push(() => Promise.all(servers.map((server) => server.close())));
    // The longest jitter: the second retry waits for 5 ms.
    const random = jest.spyOn(Math, 'random').mockReturnValue(0.999);
    cleanups.push(async () => random.mockRestore());
    const hop = clientOf(`http://hop.test:${servers[0]?.port}`, { lookup: addressesOf(four) });
    const { outcome, ms } = await measure(hop);
    expect(outcome).toBe('http_response_incomplete');
    expect(ms).toBeLessThan(800);
  });

  test('a late response is complete, although a retry waits for a lookup', async () => {
    const two = ['127.0.0.1', '127.0.0.2'];
    const requests: ServerResponse[] = [];
    let isWarm = false;
    const respond = (_req: unknown, res: ServerResponse) => {
      if (isWarm) requests.push(res);
      else res.end('ok');
    };
    const servers: StubUpstream[] = [];
    for (const host of two) servers.push(await httpUpstream(respond, host, servers[0]?.port ?? 0));
    cleanups.push(() => Promise.all(servers.map((server) => server.close())));
    let found = two;
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const lookup = async () => {
      if (found.length > 0) return addressesOf(found)();
      if (hop.stats[two[0] as string] === undefined) await held;
      return [];
    };
    const hop = clientOf(`http://hop.test:${servers[0]?.port}`, {
      lookup,
      lookupIntervalMs: 20,
      timeoutMs: 2000,
    });
    await countOutcomes(hop, 4);
    isWarm = true;
    const response = hop.request({ path: '/', method: 'GET' });
    while (requests.length < 2) await sleep(5);
    found = [];
    while (Object.keys(hop.stats).length > 0) await sleep(5);
    await sleep(50);
    requests[1]?.destroy();
    await sleep(50);
    requests[0]?.writeHead(200, { 'content-length': 4 }).write('la');
    const { body } = await response;
    release();
    await sleep(50);
    requests[0]?.end('te');
    expect(await body.text()).toBe('late');
  });

  test('a retry that is sent after the hedge delay is hedged, too', async () => {
    let connectsFail = false;
    let hung = 0;
    const server = await httpUpstream((req, res) => {
      if (req.url === '/hang' && ++hung === 1) return;
      res.writeHead(200, { connection: 'close' }).end('ok');
    });
    cleanups.push(() => server.close());
    const open = buildConnector({});
    const connector: buildConnector.connector = (options, callback) => {
      if (!connectsFail) return open(options, callback);
      connectsFail = false;
      const error = Object.assign(new Error('refused'), { code: 'ECONNREFUSED' });
      setTimeout(() => callback(error, null), 5);
    };
    const hop = clientOf(server.origin, { connect: connector, timeoutMs: 4000 });
    for (let i = 0; i < 500; i++) await measure(hop);
    // The longest jitter: 25 ms.
    const random = jest.spyOn(Math, 'random').mockReturnValue(0.999);
    cleanups.push(async () => random.mockRestore());
    connectsFail = true;
    const startedMs = performance.now();
    expect((await hop.get('/hang')).text()).toBe('ok');
    expect(performance.now() - startedMs).toBeLessThan(800);
    expect(hung).toBe(2);
  });

  test('the hedge delay of a retry starts when the retry is sent', async () => {
    const fails = (_req: unknown, res: ServerResponse) =>
      void setTimeout(() => res.writeHead(503).end(), 700);
    const bad = await httpUpstream(fails, '127.0.0.2');
    const slow = (_req: unknown, res: ServerResponse) => void setTimeout(() => res.end('slow'), 600);
    const good = await httpUpstream(slow, '127.0.0.1', bad.port);
    cleanups.push(() => Promise.all([bad.close(), good.close()]));
    const lookup = addressesOf(['127.0.0.2', '127.0.0.1']);
    const hop = clientOf(`http://hop.test:${bad.port}`, { lookup, timeoutMs: 4000 });
    expect((await measure(hop)).outcome).toBe('slow');
    expect([bad.requests(), good.requests()]).toEqual([1, 1]);
  });

  test('a request that gets a connection only after its deadline starts no timer with a negative delay', async () => {
    const server = await httpUpstream((_req, res) => void setTimeout(() => res.end('ok'), 50));
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 1, timeoutMs: 200 });
    const setTimeoutSpy = jest.spyOn(globalThis, 'setTimeout');
    cleanups.push(async () => setTimeoutSpy.mockRestore());
    // undici sends the next request one turn of the event loop later. This delays it until after its deadline.
    const onResponseStart = () => void setImmediate(() => setImmediate(() => block(250)));
    hop.dispatch({ path: '/', method: 'GET' }, { onResponseStart, onResponseError: () => {} });
    expect((await measure(hop)).outcome).toMatch(/connection_limit_reached|http_response_timeout/);
    for (const [, delayMs = 0] of setTimeoutSpy.mock.calls) expect(delayMs).toBeGreaterThanOrEqual(0);
  });

  test('a request that had to wait for a connection is hedged when its own response is slow', async () => {
    let hung = 0;
    const server = await httpUpstream((req, res) => {
      if (req.url === '/slow') setTimeout(() => res.end(), 100);
      else if (req.url !== '/hang' || ++hung > 1) res.end('ok');
    });
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 2, timeoutMs: 4000 });
    for (let i = 0; i < 100; i++) await measure(hop);
    const slow = [hop.get('/slow'), hop.get('/slow')];
    const startedMs = performance.now();
    expect((await hop.get('/hang')).text()).toBe('ok');
    expect(performance.now() - startedMs).toBeLessThan(800);
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
    for (let i = 0; i < 100; i++) await measure(hop);
    for (let i = 0; i < 20; i++) {
      const response = measure(hop);
      // undici sends the request now.
      await new Promise(setImmediate);
      const sentMs = performance.now();
      const isWaiting = () => Atomics.load(responses, 0) <= 100 + i && performance.now() < sentMs + 2000;
      while (isWaiting() || performance.now() < sentMs + 20);
      await response;
    }
    expect([...kinds]).toEqual(['first']);
  });

  test('a slow next hop has the whole deadline to respond', async () => {
    const server = await httpUpstream((_req, res) => void setTimeout(() => res.end('slow'), 800));
    cleanups.push(() => server.close());
    expect((await measure(clientOf(server.origin))).outcome).toBe('slow');
  });
});

describe('requests that were not sent', () => {
  const two = ['127.0.0.1', '127.0.0.2'];

  async function oneRefuses(): Promise<NextHop> {
    const server = await httpUpstream((req, res) => void req.pipe(res), '127.0.0.1');
    cleanups.push(() => server.close());
    return clientOf(server.origin.replace('127.0.0.1', 'hop.test'), { lookup: addressesOf(two) });
  }

  test('a POST whose connection is refused is sent to another address', async () => {
    for (let clients = 0; clients < 5; clients++) {
      const hop = await oneRefuses();
      for (let i = 0; i < 2; i++) {
        const { body } = await hop.request({ method: 'POST', path: '/', body: 'book' });
        expect(await body.text()).toBe('book');
      }
    }
  });

  test('a client that sends only POSTs readmits an address that accepts connections again', async () => {
    const server = await httpUpstream((req, res) => void req.pipe(res), '127.0.0.1');
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin.replace('127.0.0.1', 'hop.test'), { lookup: addressesOf(two) });
    const post = async () => {
      const { body } = await hop.request({ method: 'POST', path: '/', body: 'book' });
      return body.text();
    };
    for (let i = 0; i < 4; i++) expect(await post()).toBe('book');
    expect(hop.ejectedAddresses).toEqual(['127.0.0.2']);
    const back = await httpUpstream((req, res) => void req.pipe(res), '127.0.0.2', server.port);
    cleanups.push(() => back.close());
    await sleep(1000);
    for (let i = 0; i < 8; i++) {
      expect(await post()).toBe('book');
      await sleep(10);
    }
    expect(hop.ejectedAddresses).toEqual([]);
    // The probe and some of the requests.
    expect(back.requests()).toBeGreaterThan(1);
  });

  test('a POST whose body is a stream is not sent again', async () => {
    const outcomes = new Set<string>();
    for (let clients = 0; clients < 2; clients++) {
      const hop = await oneRefuses();
      for (let i = 0; i < 2; i++)
        await hop.request({ method: 'POST', path: '/', body: PassThrough.from(['book']) }).then(
          async ({ body }) => outcomes.add(await body.text()),
          ({ code }) => outcomes.add(code),
        );
    }
    expect(outcomes).toEqual(new Set(['book', 'connection_refused']));
  });

  test('a POST is not sent again after its connection is reset', async () => {
    const servers: Awaited<ReturnType<typeof rawUpstream>>[] = [];
    for (const host of two) {
      const port = servers[0]?.port;
      servers.push(await rawUpstream((socket) => void socket.resetAndDestroy(), host, port));
    }
    for (const server of servers) cleanups.push(() => server.close());
    const hop = clientOf(`http://hop.test:${servers[0]?.port}`, { lookup: addressesOf(two) });
    await expect(hop.request({ method: 'POST', path: '/', body: 'book' })).rejects.toMatchObject({
      code: 'connection_terminated',
    });
    expect(servers.reduce((sum, server) => sum + server.requests(), 0)).toBe(1);
  });
});

describe('edge cases', () => {
  test('a 503 from the only address is the response even if an earlier attempt is still in flight', async () => {
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

  test('a streamed body is destroyed if its request times out while it waits for a connection', async () => {
    const server = await httpUpstream(() => {});
    cleanups.push(() => server.close());
    const hop = clientOf(server.origin, { connections: 1, timeoutMs: 300 });
    const first = hop.get('/', { timeoutMs: 1000 }).catch(() => {});
    const body = new PassThrough();
    await expect(hop.request({ method: 'POST', path: '/', body })).rejects.toMatchObject({
      code: 'connection_limit_reached',
    });
    expect(body.destroyed).toBe(true);
    await first;
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
  test.each([
    ['an endless body', 'transfer-encoding: chunked', `10000\r\n${'x'.repeat(0x10000)}\r\n`],
    ['a body of 50 MB', 'content-length: 52428800', 'x'.repeat(0x10000)],
  ])('%s is not buffered in memory', async (_what, header, chunk) => {
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
    for (let i = 0; i < 10; i++) expect((await measure(hop)).outcome).toMatch(/body_size|unavailable/);
    expect(process.memoryUsage().rss - beforeBytes).toBeLessThan(100 * 1024 * 1024);
  });

  test('requests succeed soon after the next hop has started, although the client started first', async () => {
    const port = await closedPort();
    const hop = clientOf(`http://127.0.0.1:${port}`);
    for (let i = 0; i < 40; i++) await measure(hop);
    const server = await httpUpstream((_req, res) => void res.end('ok'), '127.0.0.1', port);
    cleanups.push(() => server.close());
    const startedMs = performance.now();
    while ((await measure(hop)).outcome !== 'ok') await sleep(20);
    expect(performance.now() - startedMs).toBeLessThan(1500);
  });

  test('a connection attempt times out after a quarter of the deadline, and the request succeeds on another address', async () => {
    const port = await fullPort('127.0.0.2');
    const server = await httpUpstream((_req, res) => void res.end('ok'), '127.0.0.1', port);
    cleanups.push(() => server.close());
    const hop = clientOf(`http://hop.test:${port}`, { lookup: addressesOf(['127.0.0.2', '127.0.0.1']) });
    const results = [await measure(hop), await measure(hop)];
    expect(results.map(({ outcome }) => outcome)).toEqual(['ok', 'ok']);
    for (const { ms } of results) expect(ms).toBeLessThan(450);
  });

  test('a request to a next hop that accepts no connections fails with connection_timeout by the deadline', async () => {
    const port = await fullPort('127.0.0.1');
    const { outcome, ms } = await measure(clientOf(`http://127.0.0.1:${port}`));
    expect(outcome).toBe('connection_timeout');
    expect(ms).toBeLessThan(1250);
  });
});

/** A port that accepts no connections, like an unreachable host: its backlog is full and its process is blocked. */
async function fullPort(host: string) {
  const port = await closedPort();
  const program = `require('node:net').createServer().listen({ port: ${port}, host: '${host}', backlog: 1 }, () => {
    require('node:fs').writeSync(1, 'listening');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 15000);
  });`;
  const child = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  const fillers = Array.from({ length: 4 }, () => connect(port, host).on('error', () => {}));
  cleanups.push(async () => {
    for (const filler of fillers) filler.destroy();
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  await sleep(50);
  return port;
}
