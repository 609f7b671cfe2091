// npm run bench: compares the cost of the hop in api with alternative implementations, in one run.
// Rounds are interleaved and each starts new processes, because V8 optimizes the same program differently from one
// process to the next, by up to a tenth. With two cores, the server runs on one, load and next hop on the other.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LOADS, startNextHops } from './loads.js';
import {
  isInstalled,
  isPinned,
  kill,
  median,
  memoryMiB,
  moveToOtherCore,
  OTHER_CORE,
  outputOf,
  SERVER_CORE,
  startNode,
  startServer,
  waitUntilReady,
} from './processes.js';

const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SECONDS = Number(process.env.SECONDS ?? 3);
// After this time V8 has finished optimizing.
const WARM_UP_SECONDS = 8;
const CONNECTIONS = 64;
const MANY_CONNECTIONS = 4096;
const MEMORY_LIMIT_MIB = 256;

const API = '../dist/services/api/main.js';
const API2 = '../dist/services/api2/main.js';
const API_NAME = 'api';
const COLLAPSE_NAME = 'api, COLLAPSE=on';
const TUTORIAL_NAME = 'Express 4 + isomorphic-fetch (tutorial)';
const FASTIFY_NAME = 'Fastify + @fastify/reply-from';
const EXPRESS_NAME = 'Express 5 + undici';
const RAW_NAME = 'node:http + undici';
// api starts with V8's compile cache, as in its image.
const COMPILE_CACHE = mkdtempSync(join(tmpdir(), 'onehop-bench-'));
process.once('exit', () => rmSync(COMPILE_CACHE, { recursive: true, force: true, maxRetries: 3 }));
const SERVERS = [
  { name: API_NAME, program: API, env: { NODE_COMPILE_CACHE: COMPILE_CACHE } },
  { name: COLLAPSE_NAME, program: API, env: { NODE_COMPILE_CACHE: COMPILE_CACHE, COLLAPSE: 'on' } },
  { name: TUTORIAL_NAME, program: 'peers/tutorial.js' },
  { name: 'Express 5 + http-proxy-middleware', program: 'peers/http-proxy-middleware.js' },
  { name: FASTIFY_NAME, program: 'peers/reply-from.js' },
  { name: EXPRESS_NAME, program: 'peers/express-undici.js' },
  { name: RAW_NAME, program: 'peers/raw.js' },
];
const PORT = 18_210;
const API2_PORT = 18_250;
const URL_OF_SERVER = `http://127.0.0.1:${PORT}`;
const API2_URL = `http://127.0.0.1:${API2_PORT}`;

// With more connections than MAX_IN_FLIGHT, api would reject requests.
const PATIENT = { MAX_IN_FLIGHT: '10000', API2_TIMEOUT_MS: '10000' };
const BOOKS_TITLES = {
  direct: '`GET /books?limit=20` from api2 itself',
  through: '`GET /books?limit=20` through api',
  long: '`GET /books?limit=100` through api',
};
// The other dependencies are for bench/fire.
const PEERS = new Set([
  '@fastify/reply-from',
  'express',
  'express4',
  'fastify',
  'http-proxy-middleware',
  'isomorphic-fetch',
  'undici',
]);

const toServer = (nextHop) => ({ NEXT_HOP: nextHop, API2_URL: nextHop });
const serverNamed = (name) => SERVERS.find((server) => server.name === name);

/** Starts a server of api or of a peer, and resolves to its process when it is ready. */
async function startReady({ program, env }, nextHop, moreEnv = {}) {
  const child = startServer(program, PORT, { ...toServer(nextHop), ...env, ...moreEnv });
  await waitUntilReady(`${URL_OF_SERVER}/hello`);
  return child;
}

// Throughput and latency of one server under each load.
async function measureServer(server) {
  const result = {};
  for (const [name, { nextHop, run }] of Object.entries(LOADS)) {
    const startedMs = performance.now();
    const child = await startReady(server, nextHop);
    const startMs = performance.now() - startedMs;
    await sleep(1000);
    const idle = memoryMiB(child.pid, 'VmRSS');
    await run(`${URL_OF_SERVER}/hello`, CONNECTIONS, WARM_UP_SECONDS);
    const full = await run(`${URL_OF_SERVER}/hello`, CONNECTIONS, SECONDS);
    const quarter =
      name === 'node'
        ? await run(`${URL_OF_SERVER}/hello`, CONNECTIONS, SECONDS, full.perSecond / 4)
        : undefined;
    const peak = memoryMiB(child.pid, 'VmHWM');
    await kill(child);
    result[name] = { startMs, idle, full, quarter, peak };
  }
  return result;
}

// Node writes the cache when the process exits.
async function writeCompileCache() {
  const child = await startReady(serverNamed(API_NAME), LOADS.node.nextHop);
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  await exited;
}

async function measureServers() {
  await writeCompileCache();
  const rounds = Object.fromEntries(SERVERS.map(({ name }) => [name, []]));
  for (let i = 0; i < ROUNDS; i++)
    for (const server of SERVERS) rounds[server.name].push(await measureServer(server));
  return rounds;
}

// A chain of two services, both on the core of the servers.
async function measureChain(name, [program, nextProgram]) {
  const next = startServer(nextProgram, API2_PORT);
  next.stdout.resume();
  await waitUntilReady(`${API2_URL}/respond`);
  const rounds = [];
  for (let i = 0; i < ROUNDS; i++) {
    const child = await startReady({ program }, API2_URL);
    const round = {};
    for (const [load, { run }] of Object.entries(LOADS)) {
      await run(`${URL_OF_SERVER}/hello`, CONNECTIONS, WARM_UP_SECONDS / 2);
      round[load] = (await run(`${URL_OF_SERVER}/hello`, CONNECTIONS, SECONDS)).perSecond;
    }
    rounds.push(round);
    await kill(child);
  }
  await kill(next);
  return { name, rounds };
}

// Behind api, api2 shares the other core with the load.
async function measureBooks() {
  const measure = async (url, path = '/books?limit=20') => {
    await LOADS.node.run(url + path, CONNECTIONS, WARM_UP_SECONDS);
    return LOADS.node.run(url + path, CONNECTIONS, SECONDS);
  };
  const startApi2 = async (core) => {
    const child = startServer(API2, API2_PORT, { DATABASE_FILE: ':memory:', LOG_LEVEL: 'silent' }, core);
    await waitUntilReady(`${API2_URL}/respond`);
    for (let i = 0; i < 120; i++) await post(`Volume ${i}`);
    return child;
  };
  const alone = await startApi2();
  const direct = await measure(API2_URL);
  await kill(alone);
  const api2 = await startApi2(OTHER_CORE);
  const api = await startReady({ program: API }, API2_URL);
  const through = await measure(URL_OF_SERVER);
  const long = await measure(URL_OF_SERVER, '/books?limit=100');
  for (const child of [api, api2]) await kill(child);
  return { direct, through, long };
}

async function post(title) {
  await fetch(`${API2_URL}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ title, author: 'Anonymous' }),
  });
}

// The same programs with an increasing number of connections.
async function measureScaling() {
  const rows = [];
  for (const [name, counts] of [
    [API_NAME, [1, CONNECTIONS, 512, MANY_CONNECTIONS]],
    [EXPRESS_NAME, [CONNECTIONS, MANY_CONNECTIONS]],
    [RAW_NAME, [CONNECTIONS, MANY_CONNECTIONS]],
  ]) {
    const child = await startReady(serverNamed(name), LOADS.node.nextHop, PATIENT);
    await LOADS.node.run(`${URL_OF_SERVER}/hello`, CONNECTIONS, WARM_UP_SECONDS);
    for (const connections of counts) {
      const { perSecond, ...figures } = await repeatLoad(connections);
      const peak = memoryMiB(child.pid, 'VmHWM');
      rows.push({ name, connections, perSecond, peak, ...figures });
    }
    await kill(child);
  }
  const baselineOf = (name) => rows.find((row) => row.name === name && row.connections === CONNECTIONS);
  return rows.map((row) => ({ ...row, cost: baselineOf(row.name).perSecond / row.perSecond }));
}

async function repeatLoad(connections) {
  const rounds = [];
  for (let i = 0; i < 3; i++)
    rounds.push(await LOADS.node.run(`${URL_OF_SERVER}/hello`, connections, SECONDS));
  return {
    perSecond: median(rounds.map(({ perSecond }) => perSecond)),
    p99: median(rounds.map(({ p99 }) => p99)),
    firstResponsesMs: median(rounds.map(({ firstResponsesMs }) => firstResponsesMs)),
    failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
  };
}

// The image as it is shipped, with the memory limit of docker-compose.yml. Undefined without Docker.
async function measureContainer() {
  if (!isInstalled('docker', 'info')) return undefined;
  const docker = (...args) => execFileSync('docker', args, { encoding: 'utf8', maxBuffer: 2 ** 26 }).trim();
  docker('build', '--quiet', '--build-arg', 'SERVICE=api', '--tag', 'onehop-bench-api', '..');
  const settings = {
    HOST: '127.0.0.1',
    PORT,
    ADMIN_PORT: PORT + 1,
    ...toServer(LOADS.node.nextHop),
    ...PATIENT,
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ['--env', `${name}=${value}`]);
  const limits = [
    '--memory',
    `${MEMORY_LIMIT_MIB}m`,
    '--memory-swap',
    `${MEMORY_LIMIT_MIB}m`,
    '--cpuset-cpus',
    '0',
  ];
  // The log is read, as in production, but not stored.
  const id = docker(
    'run',
    '--detach',
    '--network',
    'host',
    '--log-driver',
    'none',
    ...limits,
    ...options,
    'onehop-bench-api',
  );
  try {
    await waitUntilReady(`${URL_OF_SERVER}/hello`);
    await LOADS.node.run(`${URL_OF_SERVER}/hello`, CONNECTIONS, WARM_UP_SECONDS);
    const figures = await repeatLoad(MANY_CONNECTIONS);
    const pid = Number(docker('inspect', '--format', '{{.State.Pid}}', id));
    return { ...figures, peak: pid > 0 ? memoryMiB(pid, 'VmHWM') : Number.NaN };
  } finally {
    docker('rm', '--force', id);
  }
}

async function measureGet() {
  const text = await outputOf(startNode(SERVER_CORE, ['next-hop-client.js']));
  return Number(/^NextHop get .* ([\d.]+) of Pool request$/m.exec(text)[1]);
}

const rounded = (value) => Math.round(value).toLocaleString('en');

function table(head, rows) {
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

function report({ rounds, chains, books, scaling, container, get }) {
  const medianOf = (name, load, figure) => median(rounds[name].map((round) => figure(round[load])));
  const perSecond = (name, load) => medianOf(name, load, ({ full }) => full.perSecond);
  const loads = Object.keys(LOADS);

  const throughputRows = (load) =>
    SERVERS.map(({ name }) => [
      name,
      rounded(perSecond(name, load)),
      (perSecond(API_NAME, load) / perSecond(name, load)).toFixed(2),
      medianOf(name, load, ({ full }) => full.p50).toFixed(2),
      medianOf(name, load, ({ full }) => full.p99).toFixed(2),
      rounds[name].reduce((sum, round) => sum + round[load].full.failed, 0),
    ]);
  const processRows = SERVERS.map(({ name }) => [
    name,
    medianOf(name, 'node', ({ quarter }) => quarter.p50).toFixed(2),
    medianOf(name, 'node', ({ quarter }) => quarter.p99).toFixed(2),
    rounded(medianOf(name, 'node', ({ idle }) => idle)),
    rounded(medianOf(name, 'node', ({ peak }) => peak)),
    rounded(medianOf(name, 'node', ({ startMs }) => startMs)),
  ]);

  const [ours, tutorial] = chains;
  const chainRate = ({ rounds }, load) => median(rounds.map((round) => round[load]));
  const eachLoad = (figure) => loads.map((load) => figure(load).toFixed(2));
  const single = (text) => loads.map((_, i) => (i === 0 ? text : ''));
  const ratio = (one, other) => eachLoad((load) => perSecond(one, load) / perSecond(other, load));
  const quarterP99 = (name) => medianOf(name, 'node', ({ quarter }) => quarter.p99);
  const scaled = (name) => scaling.find((row) => row.name === name && row.connections === MANY_CONNECTIONS);
  const goals = [
    ['api ÷ Express 5 + undici', '≥ 1.3', ratio(API_NAME, EXPRESS_NAME)],
    ['api ÷ Fastify + reply-from', '≥ 1.2', ratio(API_NAME, FASTIFY_NAME)],
    ['api ÷ node:http + undici', '≥ 0.95', ratio(API_NAME, RAW_NAME)],
    ['api with COLLAPSE=on ÷ node:http + undici', '≥ 1.6', ratio(COLLAPSE_NAME, RAW_NAME)],
    [
      'api and api2 ÷ both services of the tutorial',
      '≥ 3',
      eachLoad((load) => chainRate(ours, load) / chainRate(tutorial, load)),
    ],
    [
      '`GET /books?limit=20` through api ÷ from api2 itself',
      '≥ 0.6',
      single((books.through.perSecond / books.direct.perSecond).toFixed(2)),
    ],
    ['`get` of next-hop ÷ `request` of an undici Pool', '≥ 1', single(get.toFixed(2))],
    [
      'p99 at quarter load, api − node:http + undici',
      '≤ 0.3 ms',
      single(`${(quarterP99(API_NAME) - quarterP99(RAW_NAME)).toFixed(2)} ms`),
    ],
    [
      `cost per request at ${MANY_CONNECTIONS} connections ÷ at ${CONNECTIONS}`,
      `≤ ${scaled(RAW_NAME).cost.toFixed(2)} (node:http + undici)`,
      single(scaled(API_NAME).cost.toFixed(2)),
    ],
    [
      `peak memory at ${MANY_CONNECTIONS} connections, in its container`,
      `≤ ${MEMORY_LIMIT_MIB} MiB`,
      single(container ? `${rounded(container.peak)} MiB` : 'no Docker'),
    ],
    [
      `first responses on ${MANY_CONNECTIONS} connections`,
      '≤ 1,000 ms',
      single(`${rounded(scaled(API_NAME).firstResponsesMs)} ms`),
    ],
    [
      'idle memory of api',
      '≤ 90 MiB',
      single(`${rounded(medianOf(API_NAME, 'node', ({ idle }) => idle))} MiB`),
    ],
    [
      'startup time of api',
      '≤ 250 ms',
      single(`${rounded(medianOf(API_NAME, 'node', ({ startMs }) => startMs))} ms`),
    ],
  ];

  const scalingRows = [
    ...scaling.map((row) => [row.name, ...scalingCells(row)]),
    ...(container
      ? [['api, in its container', ...scalingCells({ ...container, connections: MANY_CONNECTIONS })]]
      : []),
  ];
  const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8'));
  const versions = Object.keys(dependencies)
    .filter((name) => PEERS.has(name))
    .map((name) => `${name} ${dependencies[name]}`);
  return `# Results

${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}; ${isPinned ? 'the server on one core, load and next hop on another' : 'not pinned to cores'}. ${CONNECTIONS} connections, medians of ${ROUNDS} interleaved rounds, each in a new process: ${WARM_UP_SECONDS} s of warm-up, ${SECONDS} s of measurement. Latencies in ms, memory in MiB. All figures are from one run of \`npm run bench\`.

## Goals

${table(
  ['figure', 'goal', ...loads.map((load) => LOADS[load].title)],
  goals.map(([figure, goal, values]) => [figure, goal, ...values]),
)}

${loads.map((load) => `## Full load, ${LOADS[load].title}\n\n${table(['program', 'requests/s', 'api ÷ program', 'p50', 'p99', 'failed'], throughputRows(load))}`).join('\n\n')}

## Quarter load, memory and startup

Quarter load is a constant rate of a quarter of the program's own maximum, sent by ${LOADS.node.title}. Idle memory is measured one second after the start. Only api starts with a compile cache, because its image has one.

${table(['program', 'p50', 'p99', 'idle memory', 'peak memory', 'startup, ms'], processRows)}

## Both services

Both services of each pair share one core. The warm-up is half as long as in the other tables, and each figure of the books comes from one measurement.

${table(
  ['programs', ...loads.map((load) => `requests/s, ${LOADS[load].title}`)],
  chains.map((chain) => [chain.name, ...loads.map((load) => rounded(chainRate(chain, load)))]),
)}

${table(
  ['books', 'requests/s', 'p99'],
  Object.entries(BOOKS_TITLES).map(([key, title]) => [
    title,
    rounded(books[key].perSecond),
    books[key].p99.toFixed(1),
  ]),
)}

## Scaling

Relative cost is the cost of a request compared with the cost at ${CONNECTIONS} connections. First responses is the time, in ms, from the start until every connection has had its first response; measuring starts then. All figures are medians of three measurements in one process, except failed, which is their sum, and the peak memory, which includes earlier measurements. The container has ${MEMORY_LIMIT_MIB} MiB.

${table(['program', 'connections', 'requests/s', 'relative cost', 'p99', 'first responses', 'peak memory', 'failed'], scalingRows)}

Versions: ${versions.join(', ')}.
`;
}

function scalingCells({ connections, perSecond, cost, p99, firstResponsesMs, peak, failed }) {
  const figures = [p99.toFixed(1), rounded(firstResponsesMs), rounded(peak), failed];
  return [connections, rounded(perSecond), cost?.toFixed(2) ?? '', ...figures];
}

moveToOtherCore();
await startNextHops();
const text = report({
  rounds: await measureServers(),
  chains: [
    await measureChain('api and api2', [API, API2]),
    await measureChain('Express 4 + isomorphic-fetch, Express 4 (tutorial)', [
      'peers/tutorial.js',
      'peers/tutorial-api2.js',
    ]),
  ],
  books: await measureBooks(),
  scaling: await measureScaling(),
  container: await measureContainer(),
  get: await measureGet(),
});
writeFileSync('RESULTS.md', text);
process.stdout.write(text);
process.exit(0);
