// Renders bench/RESULTS.md.
import { existsSync, readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { LOADS } from './loads.js';
import { isPinned, median, quartiles } from './processes.js';
import {
  API,
  BOOKS_DIRECT,
  BOOKS_THROUGH_API,
  CHAINS,
  COLLAPSING_API,
  CONNECTION_COUNTS,
  CONNECTIONS,
  EXPRESS,
  FASTIFY,
  HUNDRED_BOOKS_THROUGH_API,
  MANY_CONNECTIONS,
  MEMORY_LIMIT_MIB,
  NODE_HTTP,
  OUR_CHAIN,
  PROGRAMS,
  TUTORIAL_CHAIN,
} from './programs.js';

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
const SOAK_FILE = 'soak/result.json';
const LOAD_NAMES = Object.keys(LOADS);
const TITLES = LOAD_NAMES.map((name) => LOADS[name].title);

const rounded = (value) => Math.round(value).toLocaleString('en');
const withQuartiles = (values, unit = '') => {
  const [low, high] = quartiles(values).map((value) => value.toFixed(2));
  return `${median(values).toFixed(2)}${unit} (${low} to ${high})`;
};

function table(head, rows) {
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** Renders the measurements of run.js as Markdown. */
export function renderReport(results) {
  const machine = `${cpus()[0].model.trim()}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.versions.node}`;
  const cores = isPinned
    ? 'the servers on one core, load generator and next hop on the other'
    : 'not pinned to cores';
  return `# Results

${new Date().toISOString().slice(0, 10)}, ${machine}; ${cores}. All figures are from one run of \`npm run bench\`, except the soak's.

All programs of a comparison are started together, but only one is under load at a time. Each ratio or difference is the median over pairs of measurements taken one right after the other; the range in parentheses contains the middle half of the pairs. Other figures are medians over all measurements, except failed, which is a sum, and peak memory, which is a maximum. A measurement takes 1 s (2 s at quarter load), after 8 s of warm-up for each process and half a second or more for each measurement. Rounds with new processes: ${results.rounds}. All tables use ${CONNECTIONS} connections unless they say otherwise. Latencies are in ms, memory is in MiB.

## Goals

${table(['figure', 'goal', ...TITLES], loadGoals(results))}

${table(['figure', 'goal', 'measured'], otherGoals(results))}

${LOAD_NAMES.map((name) => fullLoad(results, name)).join('\n\n')}

## Quarter load, memory and startup

Quarter load is a constant rate of a quarter of the program's own maximum, so the rates differ between programs. ${LOADS.node.title} sends it, and measures from the moment of sending. Idle memory is measured one second after the program is ready. Only api starts with a compile cache, because its image has one.

${table(['program', 'p50', 'p99', 'idle memory', 'startup, ms'], processRows(results))}

## Both services

In the first table, all services share one core. The programs of node:http only forward the request, without logs, metrics or retries, and serve as a baseline.

${table(
  ['programs', ...TITLES.flatMap((title) => [`requests/s, ${title}`, `÷ tutorial, ${title}`])],
  Object.keys(CHAINS).map((chain) => [
    chain,
    ...LOAD_NAMES.flatMap((name) => chainCells(results.chains[name], chain)),
  ]),
)}

In the second one, api2 shares a core with the load generator when it is behind api. Its log is off.

${table(
  ['books', 'requests/s', 'p99'],
  [BOOKS_DIRECT, BOOKS_THROUGH_API, HUNDRED_BOOKS_THROUGH_API].map((name) => [
    name,
    rounded(results.books.median(name)),
    results.books.median(name, 'p99').toFixed(1),
  ]),
)}

## Scaling

Relative cost is the requests/s at ${CONNECTIONS} connections divided by those at this number. First responses is the time until every connection has had its first response, in ms; measuring starts then, but not before half a second has passed. Each row has its own processes. The container's memory limit is ${MEMORY_LIMIT_MIB} MiB.

${table(['program', 'connections', 'requests/s', 'relative cost', 'p99', 'first responses', 'peak memory', 'failed'], scalingRows(results))}

Versions: ${versions()}.
`;
}

function loadGoals({ servers, chains }) {
  const row = (figure, goal, ratiosOf) => [
    figure,
    goal,
    ...LOAD_NAMES.map((name) => withQuartiles(ratiosOf(name))),
  ];
  const serverRow = (figure, goal, one, other) =>
    row(figure, goal, (name) => servers.full[name].ratios(one, other));
  return [
    serverRow('api ÷ Express 5 + undici', '≥ 1.3', API, EXPRESS),
    serverRow('api ÷ Fastify + reply-from', '≥ 1.2', API, FASTIFY),
    serverRow('api ÷ node:http + undici', '≥ 0.95', API, NODE_HTTP),
    serverRow('api with COLLAPSE=on ÷ node:http + undici', '≥ 1.6', COLLAPSING_API, NODE_HTTP),
    row('api and api2 ÷ both services of the tutorial', '≥ 3', (name) =>
      chains[name].ratios(OUR_CHAIN, TUTORIAL_CHAIN),
    ),
  ];
}

function otherGoals({ servers, books, scaling, container, get }) {
  const costs = (name) => scaling[name].ratios(CONNECTIONS, MANY_CONNECTIONS);
  const medianOfProcesses = (figure) => median(servers.processes[API].map((measured) => measured[figure]));
  return [
    [
      '`GET /books?limit=20`: through api ÷ directly from api2',
      '≥ 0.6',
      withQuartiles(books.ratios(BOOKS_THROUGH_API, BOOKS_DIRECT)),
    ],
    ['`get` of next-hop ÷ `request` of an undici Pool', '≥ 1', get.toFixed(2)],
    [
      'p99 at quarter load, api − node:http + undici',
      '≤ 0.3 ms',
      withQuartiles(servers.quarter.differences(API, NODE_HTTP, 'p99'), ' ms'),
    ],
    [
      `cost per request at ${MANY_CONNECTIONS} connections ÷ at ${CONNECTIONS}`,
      `≤ ${median(costs(NODE_HTTP)).toFixed(2)} (node:http + undici)`,
      withQuartiles(costs(API)),
    ],
    [
      `peak memory at ${MANY_CONNECTIONS} connections, in its container`,
      `≤ ${MEMORY_LIMIT_MIB} MiB, no restart`,
      container ? `${rounded(peakOf(container))} MiB` : 'not measured (no Docker)',
    ],
    [
      `first responses on ${MANY_CONNECTIONS} connections`,
      '≤ 1,000 ms',
      `${rounded(scaling[API].median(MANY_CONNECTIONS, 'firstResponsesMs'))} ms`,
    ],
    ['idle memory of api', '≤ 90 MiB', `${rounded(medianOfProcesses('idle'))} MiB`],
    ['startup time of api', '≤ 250 ms', `${rounded(medianOfProcesses('startMs'))} ms`],
    soakGoal(),
  ];
}

function soakGoal() {
  const goal = '≤ 1.1, 0 wrong responses';
  if (!existsSync(SOAK_FILE))
    return ['soak: memory in the last minute ÷ in minute 2', goal, 'not measured (`npm run bench:soak`)'];
  const { date, minutes, passed, wrong, secondMinuteMiB, lastMinuteMiB } = JSON.parse(
    readFileSync(SOAK_FILE, 'utf8'),
  );
  const measured = `${(lastMinuteMiB / secondMinuteMiB).toFixed(3)}, ${wrong} wrong responses`;
  return [
    `soak: memory in minute ${minutes} ÷ in minute 2 (\`npm run bench:soak\`, ${date})`,
    goal,
    passed ? measured : `${measured}; failed`,
  ];
}

function fullLoad({ servers }, loadName) {
  const comparison = servers.full[loadName];
  const rows = Object.keys(PROGRAMS).map((name) => [
    name,
    rounded(comparison.median(name)),
    name === API || name === COLLAPSING_API ? '' : withQuartiles(comparison.ratios(API, name)),
    comparison.median(name, 'p50').toFixed(2),
    comparison.median(name, 'p99').toFixed(2),
    failedOf(comparison.results(name)),
  ]);
  return `## Full load, ${LOADS[loadName].title}

${table(['program', 'requests/s', 'api ÷ program', 'p50', 'p99', 'failed'], rows)}`;
}

function processRows({ servers: { quarter, processes } }) {
  const medianOf = (name, figure) => rounded(median(processes[name].map((measured) => measured[figure])));
  return Object.keys(PROGRAMS).map((name) => [
    name,
    quarter.median(name, 'p50').toFixed(2),
    quarter.median(name, 'p99').toFixed(2),
    medianOf(name, 'idle'),
    medianOf(name, 'startMs'),
  ]);
}

function chainCells(comparison, chain) {
  const ratio = chain === TUTORIAL_CHAIN ? '' : withQuartiles(comparison.ratios(chain, TUTORIAL_CHAIN));
  return [rounded(comparison.median(chain)), ratio];
}

function scalingRows({ scaling, container }) {
  const rows = Object.entries(CONNECTION_COUNTS).flatMap(([name, counts]) =>
    [CONNECTIONS, ...counts]
      .toSorted((a, b) => a - b)
      .map((connections) => {
        const costs = scaling[name].ratios(CONNECTIONS, connections);
        const cost = connections === CONNECTIONS ? 1 : median(costs);
        return [name, connections, ...scalingCells(scaling[name].results(connections), cost)];
      }),
  );
  if (container) rows.push(['api, in its container', MANY_CONNECTIONS, ...scalingCells(container)]);
  return rows;
}

function scalingCells(results, cost) {
  const medianOf = (figure) => median(results.map((result) => result[figure]));
  return [
    rounded(medianOf('perSecond')),
    cost?.toFixed(2) ?? '',
    medianOf('p99').toFixed(1),
    rounded(medianOf('firstResponsesMs')),
    rounded(peakOf(results)),
    failedOf(results),
  ];
}

const peakOf = (results) => Math.max(...results.map(({ peak }) => peak));
const failedOf = (results) => results.reduce((sum, { failed }) => sum + failed, 0);

function versions() {
  const { dependencies } = JSON.parse(readFileSync('package.json', 'utf8'));
  return Object.keys(dependencies)
    .filter((name) => PEERS.has(name))
    .map((name) => `${name} ${dependencies[name]}`)
    .join(', ');
}
