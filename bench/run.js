// npm run bench: compares the cost of the hop in api with alternative implementations, in one run.
// Rounds are interleaved and each starts new processes, because V8 optimizes the same program differently from one
// process to the next, by up to a tenth. With two cores, the server runs on one, load and next hop on the other.
import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SECONDS = Number(process.env.SECONDS ?? 3);
// After this time V8 has finished optimizing.
const WARM_UP_SECONDS = 8;
const CONNECTIONS = 64;
const NEXT_HOP_PORT = 18_200;
const NEXT_HOP = `http://127.0.0.1:${NEXT_HOP_PORT}`;
const isPinned = availableParallelism() >= 2 && hasTaskset();

const API = '../dist/services/api/main.js';
const API2 = '../dist/services/api2/main.js';
const SERVERS = [
  { name: 'api', program: API, env: {} },
  { name: 'api, COLLAPSE=on', program: API, env: { COLLAPSE: 'on' } },
  { name: 'Express 4 + isomorphic-fetch (tutorial)', program: 'peers/tutorial.js' },
  { name: 'Express 5 + http-proxy-middleware', program: 'peers/http-proxy-middleware.js' },
  { name: 'Fastify + @fastify/reply-from', program: 'peers/reply-from.js' },
  { name: 'Express 5 + undici', program: 'peers/express-undici.js' },
  { name: 'node:http + undici', program: 'peers/raw.js' },
].map((server, i) => ({ ...server, port: 18_210 + 2 * i, rounds: [] }));

const running = [];

function hasTaskset() {
  try {
    execFileSync('taskset', ['--version']);
    return true;
  } catch {
    return false;
  }
}

function start(core, args, env = {}) {
  const [command, ...rest] = isPinned
    ? ['taskset', '-c', String(core), process.execPath, ...args]
    : [process.execPath, ...args];
  const child = spawn(command, rest, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  running.push(child);
  return child;
}

function startServer({ program, port, env = {} }) {
  const child = start(0, [program], {
    HOST: '127.0.0.1',
    PORT: String(port),
    ADMIN_PORT: String(port + 1),
    NEXT_HOP,
    API2_URL: NEXT_HOP,
    ...env,
  });
  child.stdout.resume();
  return child;
}

async function waitUntilReady(url) {
  for (;;) {
    try {
      const response = await fetch(url);
      await response.arrayBuffer();
      if (response.ok) return;
    } catch {
      // The server does not listen yet.
    }
    await sleep(2);
  }
}

async function kill(child) {
  const exited = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await exited;
}

async function load(url, connections, seconds, rate) {
  const child = start(1, [
    'load.js',
    url,
    String(connections),
    String(seconds),
    ...(rate ? [String(rate)] : []),
  ]);
  let text = '';
  for await (const data of child.stdout) text += data;
  return JSON.parse(text);
}

function memoryMiB({ pid }, field) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)[1]) / 1024;
}

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function round(server) {
  const url = `http://127.0.0.1:${server.port}/hello`;
  const startedMs = performance.now();
  const child = startServer(server);
  await waitUntilReady(url);
  const startMs = performance.now() - startedMs;
  await sleep(1000);
  const idle = memoryMiB(child, 'VmRSS');
  await load(url, CONNECTIONS, WARM_UP_SECONDS);
  const full = await load(url, CONNECTIONS, SECONDS);
  const quarter = await load(url, CONNECTIONS, SECONDS, full.perSecond / 4);
  const peak = memoryMiB(child, 'VmHWM');
  await kill(child);
  return { startMs, idle, full, quarter, peak };
}

async function compare() {
  for (let i = 0; i < ROUNDS; i++) for (const server of SERVERS) server.rounds.push(await round(server));
}

// Measures the same programs with an increasing number of connections, and api's lists of books with a real api2.
async function measureScaling() {
  const rows = [];
  const [raw, bare] = ['node:http', 'Express 5 + undici'].map(named);
  for (const { name, program, counts } of [
    { ...named('api'), counts: [1, 64, 512, 4096] },
    { ...bare, counts: [64, 4096] },
    { ...raw, counts: [64, 4096] },
  ]) {
    const server = { program, port: 18_240, env: { MAX_IN_FLIGHT: '10000', API2_TIMEOUT_MS: '10000' } };
    const results = [];
    for (const connections of counts) results.push(await measureAt(name, server, '/hello', connections));
    const baseline = results.find(({ connections }) => connections === CONNECTIONS);
    rows.push(...results.map((row) => ({ ...row, cost: baseline.perSecond / row.perSecond })));
  }
  const api2 = start(1, [API2], {
    HOST: '127.0.0.1',
    PORT: '18250',
    ADMIN_PORT: '18251',
    DATABASE_FILE: ':memory:',
    LOG_LEVEL: 'silent',
  });
  api2.stdout.resume();
  await waitUntilReady('http://127.0.0.1:18250/respond');
  for (let i = 0; i < 120; i++) await post(`Volume ${i}`);
  for (const limit of [20, 100]) {
    const server = { program: API, port: 18_240, env: { API2_URL: 'http://127.0.0.1:18250' } };
    rows.push(await measureAt('api', server, `/books?limit=${limit}`, CONNECTIONS));
  }
  await kill(api2);
  return rows;
}

async function post(title) {
  await fetch('http://127.0.0.1:18250/books', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ title, author: 'Anonymous' }),
  });
}

async function measureAt(name, server, path, connections) {
  const child = startServer(server);
  const url = `http://127.0.0.1:${server.port}`;
  await waitUntilReady(`${url}/hello`);
  await load(url + path, CONNECTIONS, WARM_UP_SECONDS);
  const rounds = [];
  for (let i = 0; i < 3; i++) rounds.push(await load(url + path, connections, SECONDS));
  const peak = memoryMiB(child, 'VmHWM');
  await kill(child);
  const figure = (name) => medianOf({ rounds }, (round) => round[name]);
  return {
    name,
    path,
    connections,
    perSecond: figure('perSecond'),
    p99: figure('p99'),
    firstResponsesMs: figure('firstResponsesMs'),
    failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
    peak,
  };
}

const rounded = (value) => Math.round(value).toLocaleString('en');
const medianOf = ({ rounds }, figure) => median(rounds.map(figure));
const perSecondOf = (server) => medianOf(server, ({ full }) => full.perSecond);
const named = (name) => SERVERS.find((server) => server.name.startsWith(name));

function comparison() {
  const apiPerSecond = perSecondOf(named('api'));
  return SERVERS.map((server) => [
    server.name,
    rounded(perSecondOf(server)),
    (apiPerSecond / perSecondOf(server)).toFixed(2),
    medianOf(server, ({ full }) => full.p50).toFixed(2),
    medianOf(server, ({ full }) => full.p99).toFixed(2),
    medianOf(server, ({ quarter }) => quarter.p50).toFixed(2),
    medianOf(server, ({ quarter }) => quarter.p99).toFixed(2),
    rounded(medianOf(server, ({ idle }) => idle)),
    rounded(medianOf(server, ({ peak }) => peak)),
    rounded(medianOf(server, ({ startMs }) => startMs)),
    server.rounds.reduce((sum, { full, quarter }) => sum + full.failed + quarter.failed, 0),
  ]);
}

function goals() {
  const ratio = (one, other) => perSecondOf(named(one)) / perSecondOf(named(other));
  const api = named('api');
  const bare = named('Express 5 + undici');
  const [apiP99, bareP99] = [api, bare].map((server) => medianOf(server, ({ quarter }) => quarter.p99));
  const difference = apiP99 - bareP99;
  return [
    ['api ÷ Express 5 + undici', ratio('api', 'Express 5 + undici').toFixed(2), '≥ 0.8'],
    ['api ÷ Fastify + reply-from', ratio('api', 'Fastify').toFixed(2), '≥ 1.15'],
    ['api ÷ the tutorial program', ratio('api', 'Express 4').toFixed(2), '≥ 2.2'],
    ['api with COLLAPSE=on ÷ node:http + undici', ratio('api, COLLAPSE', 'node:http').toFixed(2), '≥ 1.3'],
    ['p99 at quarter load, api − Express 5 + undici', `${difference.toFixed(2)} ms`, '≤ 1 ms'],
    ['idle memory of api', `${rounded(medianOf(api, ({ idle }) => idle))} MiB`, '≤ 95 MiB'],
    ['startup time of api', `${rounded(medianOf(api, ({ startMs }) => startMs))} ms`, '≤ 300 ms'],
  ];
}

function table(head, rows) {
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

function versions() {
  const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8'));
  return Object.entries(dependencies)
    .map(([name, version]) => `${name} ${version}`)
    .join(', ');
}

process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
// This process reads the logs of the servers, so it must not run on their core.
if (isPinned) execFileSync('taskset', ['-cp', '1', String(process.pid)]);
start(1, ['next-hop.js'], { PORT: String(NEXT_HOP_PORT) });
await compare();
const rows = await measureScaling();
const text = `# Results

${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}; ${isPinned ? 'the server on one core, load and next hop on another' : 'not pinned to cores'}. ${CONNECTIONS} connections, medians of ${ROUNDS} interleaved rounds, each in a new process: ${WARM_UP_SECONDS} s of warm-up, ${SECONDS} s at full load, ${SECONDS} s at quarter load. Quarter load is a constant rate of a quarter of the program's own maximum. Latencies in ms, memory in MiB.

${table(['program', 'requests/s', 'api ÷ program', 'p50', 'p99', 'p50 at quarter load', 'p99 at quarter load', 'idle memory', 'peak memory', 'startup, ms', 'failed'], comparison())}

${table(['figure', 'measured', 'goal'], goals())}

## Scaling

Relative cost is the cost of a request compared with the cost at 64 connections. First responses is the time, in ms, from the start until every connection has had its first response; measuring starts then.

${table(
  [
    'program',
    'path',
    'connections',
    'requests/s',
    'relative cost',
    'p99',
    'first responses',
    'peak memory',
    'failed',
  ],
  rows.map(({ name, path, connections, perSecond, cost, p99, firstResponsesMs, peak, failed }) => [
    name,
    `\`${path}\``,
    connections,
    rounded(perSecond),
    cost?.toFixed(2) ?? '',
    p99.toFixed(1),
    rounded(firstResponsesMs),
    rounded(peak),
    failed,
  ]),
)}

Versions: ${versions()}.
`;
writeFileSync('RESULTS.md', text);
process.stdout.write(text);
process.exit(0);
