// npm run bench: compares api with alternative implementations of the hop. All programs of a comparison are started
// together, and the load alternates between two of them. Each round starts new processes, because V8 optimizes the same
// program differently from one process to the next, by up to a tenth. With two cores, the servers run on one, and the
// load generator and the next hop on the other.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Comparison } from './comparison.js';
import { LOADS, startNextHops } from './loads.js';
import {
  isInstalled,
  kill,
  memoryMiB,
  moveToOtherCore,
  OTHER_CORE,
  outputOf,
  SERVER_CORE,
  startNode,
  startServer,
  waitUntilReady,
} from './processes.js';
import {
  API,
  API2_FILE,
  BOOKS_DIRECT,
  BOOKS_THROUGH_API,
  CHAINS,
  CONNECTION_COUNTS,
  CONNECTIONS,
  HUNDRED_BOOKS_THROUGH_API,
  MANY_CONNECTIONS,
  MEMORY_LIMIT_MIB,
  NODE_HTTP_CHAIN,
  OUR_CHAIN,
  PAIRS,
  PROGRAMS,
  TUTORIAL_CHAIN,
} from './programs.js';
import { renderReport } from './report.js';

const ROUNDS = Number(process.env.ROUNDS ?? 2);
// Measurements of each pair per round.
const MEASUREMENTS = Number(process.env.MEASUREMENTS ?? 3);
if (!(ROUNDS >= 1 && MEASUREMENTS >= 1)) throw new Error('ROUNDS and MEASUREMENTS must be at least 1');
const SECONDS = 1;
const QUARTER_SECONDS = 2;
// By then, V8 has optimized the hot code.
const WARM_UP_SECONDS = 8;
const MANY_CONNECTIONS_PAUSE_MS = 1000;
// With more connections than MAX_IN_FLIGHT, api would reject requests.
const HIGH_LIMITS = { MAX_IN_FLIGHT: '10000', API2_TIMEOUT_MS: '10000' };
const FIRST_PORT = 18_210;
const CONTAINER_PORT = 18_190;
const COMPILE_CACHE = mkdtempSync(join(tmpdir(), 'onehop-bench-'));
process.once('exit', () => rmSync(COMPILE_CACHE, { recursive: true, force: true, maxRetries: 3 }));

let nextPort = FIRST_PORT;

const nextHopEnv = (url) => ({ NEXT_HOP: url, API2_URL: url });
const loadHello = (server, load, connections, seconds, rate) =>
  load.run(`${server.url}/hello`, connections, seconds, rate);
const warmUp = (server, load) => loadHello(server, load, CONNECTIONS, WARM_UP_SECONDS);

function mapKeys(object, makeValue) {
  return Object.fromEntries(Object.keys(object).map((key) => [key, makeValue(key)]));
}

/** Starts api, api2 or a peer, and resolves when it responds to `path` with 200. */
async function startReady({ file, hasCompileCache, env }, { nextHop, extraEnv, path = '/hello', core } = {}) {
  const port = nextPort;
  // port + 1 is the admin port.
  nextPort += 2;
  const cache = hasCompileCache ? { NODE_COMPILE_CACHE: COMPILE_CACHE } : {};
  const startedMs = performance.now();
  const child = startServer(file, port, { ...nextHopEnv(nextHop), ...cache, ...env, ...extraEnv }, core);
  const url = `http://127.0.0.1:${port}`;
  const exited = once(child, 'exit').then(() => {
    throw new Error(`${file} exited before it was ready`);
  });
  exited.catch(() => {});
  await Promise.race([waitUntilReady(url + path), exited]);
  const startMs = performance.now() - startedMs;
  return { child, url, startMs, peak: () => memoryMiB(child.pid, 'VmHWM') };
}

// Node writes the cache when the process exits.
async function writeCompileCache() {
  const { child } = await startReady(PROGRAMS[API], { nextHop: LOADS.node.nextHop });
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  await exited;
}

async function killAll(servers) {
  for (const { child } of servers) await kill(child);
  nextPort = FIRST_PORT;
}

// Compares all programs at full load with each load generator, and at a quarter of it with load.js. Also measures
// startup and memory.
async function compareServers() {
  const full = mapKeys(LOADS, () => new Comparison());
  const quarter = new Comparison();
  const processes = mapKeys(PROGRAMS, () => []);
  for (let round = 0; round < ROUNDS; round++)
    for (const [loadName, load] of Object.entries(LOADS)) {
      const names = Object.keys(PROGRAMS);
      const servers = {};
      for (const name of round % 2 === 0 ? names : names.toReversed()) {
        const server = await startReady(PROGRAMS[name], { nextHop: load.nextHop });
        servers[name] = server;
        await sleep(1000);
        const { child, startMs } = server;
        if (load === LOADS.node) processes[name].push({ startMs, idle: memoryMiB(child.pid, 'VmRSS') });
      }
      for (const server of Object.values(servers)) await warmUp(server, load);
      const measureFull = (name) => loadHello(servers[name], load, CONNECTIONS, SECONDS);
      for (let i = 0; i < MEASUREMENTS; i++)
        for (const pair of PAIRS) await full[loadName].measure(...pair, measureFull);
      const measureQuarter = (name) =>
        loadHello(servers[name], load, CONNECTIONS, QUARTER_SECONDS, full[loadName].median(name) / 4);
      if (load === LOADS.node)
        for (let i = 0; i < MEASUREMENTS; i += 2)
          for (const pair of PAIRS) await quarter.measure(...pair, measureQuarter);
      await killAll(Object.values(servers));
    }
  return { full, quarter, processes };
}

// Compares chains of two services that share the core of the servers.
async function compareChains() {
  const comparisons = mapKeys(LOADS, () => new Comparison());
  for (let round = 0; round < ROUNDS; round++) {
    const servers = {};
    const nextServers = [];
    for (const [name, { file, nextFile }] of Object.entries(CHAINS)) {
      const extraEnv = { DATABASE_FILE: ':memory:' };
      const nextServer = await startReady({ file: nextFile }, { extraEnv, path: '/respond' });
      nextServers.push(nextServer);
      servers[name] = await startReady({ file }, { nextHop: nextServer.url });
    }
    for (const [loadName, load] of Object.entries(LOADS)) {
      for (const server of Object.values(servers)) await warmUp(server, load);
      const measure = (name) => loadHello(servers[name], load, CONNECTIONS, SECONDS);
      for (let i = 0; i < MEASUREMENTS; i++)
        for (const chain of [OUR_CHAIN, NODE_HTTP_CHAIN])
          await comparisons[loadName].measure(chain, TUTORIAL_CHAIN, measure);
    }
    await killAll([...Object.values(servers), ...nextServers]);
  }
  return comparisons;
}

// When api2 is behind api, it shares a core with the load generator.
async function compareBooks() {
  const comparison = new Comparison();
  for (let round = 0; round < ROUNDS; round++) {
    const direct = await startApi2WithBooks(SERVER_CORE);
    const api2 = await startApi2WithBooks(OTHER_CORE);
    const api = await startReady(PROGRAMS[API], { nextHop: api2.url });
    const urls = {
      [BOOKS_DIRECT]: `${direct.url}/books?limit=20`,
      [BOOKS_THROUGH_API]: `${api.url}/books?limit=20`,
      [HUNDRED_BOOKS_THROUGH_API]: `${api.url}/books?limit=100`,
    };
    const load = (name, seconds) => LOADS.node.run(urls[name], CONNECTIONS, seconds);
    const measure = (name) => load(name, SECONDS);
    for (const name of [BOOKS_DIRECT, BOOKS_THROUGH_API]) await load(name, WARM_UP_SECONDS);
    for (let i = 0; i < MEASUREMENTS; i++) await comparison.measure(BOOKS_THROUGH_API, BOOKS_DIRECT, measure);
    // Later, because the process has a larger heap after long responses.
    await load(HUNDRED_BOOKS_THROUGH_API, WARM_UP_SECONDS);
    for (let i = 0; i < MEASUREMENTS; i++)
      await comparison.measure(HUNDRED_BOOKS_THROUGH_API, BOOKS_THROUGH_API, measure);
    await killAll([api, api2, direct]);
  }
  return comparison;
}

async function startApi2WithBooks(core) {
  const extraEnv = { DATABASE_FILE: ':memory:', LOG_LEVEL: 'silent' };
  const server = await startReady({ file: API2_FILE }, { extraEnv, path: '/respond', core });
  for (let i = 0; i < 120; i++)
    await fetch(`${server.url}/books`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ title: `Volume ${i}`, author: 'Anonymous' }),
    });
  return server;
}

// Compares each program with itself at different numbers of connections. Each number has its own process, because a
// heap that has grown for many connections stays large.
async function compareScaling() {
  const load = LOADS.node;
  const comparisons = mapKeys(CONNECTION_COUNTS, () => new Comparison());
  for (let round = 0; round < ROUNDS; round++) {
    const servers = mapKeys(CONNECTION_COUNTS, () => ({}));
    for (const [name, counts] of Object.entries(CONNECTION_COUNTS))
      for (const connections of [CONNECTIONS, ...counts]) {
        const server = await startReady(PROGRAMS[name], { nextHop: load.nextHop, extraEnv: HIGH_LIMITS });
        await loadHello(server, load, connections, WARM_UP_SECONDS);
        servers[name][connections] = server;
      }
    for (let i = 0; i < MEASUREMENTS; i++)
      for (const [name, counts] of Object.entries(CONNECTION_COUNTS)) {
        const measure = (connections) => measureWithPeak(servers[name][connections], connections);
        for (const count of counts)
          await comparisons[name].measure(CONNECTIONS, count, measure, MANY_CONNECTIONS_PAUSE_MS);
      }
    await killAll(Object.values(servers).flatMap((byCount) => Object.values(byCount)));
  }
  return comparisons;
}

async function measureWithPeak(server, connections) {
  const result = await loadHello(server, LOADS.node, connections, SECONDS);
  return { ...result, peak: server.peak() };
}

// Measures the image as shipped, with the memory limit of docker-compose.yml. Resolves to undefined without Docker.
async function measureContainer() {
  if (!isInstalled('docker', 'info')) return undefined;
  const docker = (...args) => execFileSync('docker', args, { encoding: 'utf8', maxBuffer: 2 ** 26 }).trim();
  docker('build', '--quiet', '--build-arg', 'SERVICE=api', '--tag', 'onehop-bench-api', '..');
  const settings = {
    HOST: '127.0.0.1',
    PORT: CONTAINER_PORT,
    ADMIN_PORT: CONTAINER_PORT + 1,
    ...nextHopEnv(LOADS.node.nextHop),
    ...HIGH_LIMITS,
  };
  const memory = `${MEMORY_LIMIT_MIB}m`;
  const limits = ['--memory', memory, '--memory-swap', memory, '--cpuset-cpus', String(SERVER_CORE)];
  // The log is read, as in production, but not stored.
  const id = docker(
    ...['run', '--detach', '--network', 'host', '--log-driver', 'none', ...limits],
    ...Object.entries(settings).flatMap(([name, value]) => ['--env', `${name}=${value}`]),
    'onehop-bench-api',
  );
  const remove = () => docker('rm', '--force', id);
  process.once('exit', remove);
  const pid = Number(docker('inspect', '--format', '{{.State.Pid}}', id));
  const server = { url: `http://127.0.0.1:${CONTAINER_PORT}`, peak: () => memoryMiB(pid, 'VmHWM') };
  await waitUntilReady(`${server.url}/hello`);
  await warmUp(server, LOADS.node);
  const results = [];
  for (let i = 0; i < ROUNDS * MEASUREMENTS; i++) {
    results.push(await measureWithPeak(server, MANY_CONNECTIONS));
    await sleep(MANY_CONNECTIONS_PAUSE_MS);
  }
  process.off('exit', remove);
  remove();
  return results;
}

async function measureGet() {
  const text = await outputOf(startNode(SERVER_CORE, ['next-hop-client.js']));
  return Number(/^NextHop get .* ([\d.]+) of Pool request$/m.exec(text)[1]);
}

moveToOtherCore();
await startNextHops();
await writeCompileCache();
const text = renderReport({
  rounds: ROUNDS,
  // First, because they depend on programs that may be missing.
  get: await measureGet(),
  container: await measureContainer(),
  servers: await compareServers(),
  chains: await compareChains(),
  books: await compareBooks(),
  scaling: await compareScaling(),
});
writeFileSync('RESULTS.md', text);
process.stdout.write(text);
process.exit(0);
