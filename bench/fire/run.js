// npm run bench:fire: compares next-hop with other clients while api2 fails, in about 22 minutes, or more if the host
// withholds CPU time, because measurements are then repeated.
// ROUNDS=5 npm run bench:fire: repeats this five times, and reports totals and medians. FIRE.md is from such a run.
// To repeat some cells: CLIENTS=fetch,next-hop SCENARIOS=frozen npm run bench:fire. The report is then only printed.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { SCENARIOS } from './scenarios.js';
import { compose, docker, down } from './stack.js';
import { MAX_STEAL } from './steal.js';

const CLIENTS = {
  fetch: 'fetch',
  'fetch-retry': 'fetch, 2 retries, timeout',
  'undici-dns': 'undici Agent, dns, retry',
  'undici-round-robin': 'undici RoundRobinPool, retry',
  axios: 'axios, axios-retry',
  got: 'got',
  cockatiel: 'cockatiel, fetch',
  haproxy: 'HAProxy sidecar, fetch',
  'next-hop': 'next-hop',
};

const ms = (value) => (value < 10 ? value.toFixed(1) : Math.round(value).toString());
const percent = (value) => `${(value * 100).toFixed(0)} %`;
const decimalPercent = (value) => `${(value * 100).toFixed(1)} %`;
const COMMON_COLUMNS = { failed: 'failed', slowest: 'slowest', p99: 'p99', requests: 'requests to api2' };
const FORMATS = {
  failed: String,
  sentTwice: String,
  storedTwice: String,
  missing: String,
  requests: (value) => value.toFixed(2),
  share: percent,
  cpu: (value) => value.toFixed(2),
  steal: decimalPercent,
};
const WRONG_RESULTS = ['sentTwice', 'storedTwice', 'missing'];
/** Columns with the total of all rounds. The others have the median. */
const TOTALED_COLUMNS = new Set(['sent', 'failed', ...WRONG_RESULTS]);
// The distance from the ideal value. In all other columns, lower is better.
const DISTANCE = { share: (value) => Math.abs(value - 2 / 3) };
// Fewer requests can mean that some never reached api2, so a low number is no advantage.
const NOT_RANKED = new Set(['requests']);

/** A client counts as slower than the best one if the p-value is at most this. */
const SIGNIFICANCE_LEVEL = 0.05;

/** With fewer rounds, no difference can be significant. */
const MIN_ROUNDS_FOR_TEST = 3;
/** With more, the test would need too much memory. */
const MAX_ROUNDS = 10;

/** The maximum number of attempts for a measurement that throws. */
const MAX_ATTEMPTS = 3;
/** The maximum number of measurements of a cell in one round while steal exceeds `MAX_STEAL`. */
const MAX_MEASUREMENTS = 5;

// A garbage collection of this process would delay requests. The flags in package.json make them rare, and one is forced
// before each measurement.
if (globalThis.gc === undefined) throw new Error('Node must run with --expose-gc. Use `npm run bench:fire`.');
const requestedRounds = Number(process.env.ROUNDS ?? 1);
if (!(Number.isInteger(requestedRounds) && requestedRounds >= 1 && requestedRounds <= MAX_ROUNDS))
  throw new Error(`ROUNDS must be an integer from 1 to ${MAX_ROUNDS}.`);
const isComplete = process.env.CLIENTS === undefined && process.env.SCENARIOS === undefined;
const clients = selectedNames('CLIENTS', CLIENTS);
const scenarios = selectedNames('SCENARIOS', SCENARIOS);
/** The commit of the code that is measured, with `-dirty` if a file was changed since. */
const commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
/** The figures of each round: scenario, client, column. */
const measured = mapCells(() => []);
/** The number of complete rounds. */
let rounds = 0;
/** The totals or medians of the complete rounds, in the structure of `measured`. */
let results;
/** Measurements that threw and were repeated. */
const failedMeasurements = [];
/** The measurements of each client that were repeated because of steal. */
const stealRepeats = Object.fromEntries(clients.map((client) => [client, []]));
/** Set by SIGINT and SIGTERM. No further measurement starts. */
let isStopping = false;

/** The names in an environment variable, separated by commas, or all names. */
function selectedNames(variable, all) {
  const names = process.env[variable]?.split(',') ?? Object.keys(all);
  const unknown = names.find((name) => !Object.hasOwn(all, name));
  if (unknown !== undefined)
    throw new Error(`${variable} contains "${unknown}", but the names are: ${Object.keys(all).join(', ')}.`);
  return names;
}

/** Measures one more round of all cells. */
async function measureRound() {
  for (const scenario of scenarios)
    for (const client of clientsOf(rounds)) measured[scenario][client].push(await measure(client, scenario));
  rounds++;
  results = mapCells((scenario, client) => combine(measured[scenario][client]));
}

/** All clients. Each round starts with a different one, because the first one follows another scenario. */
function clientsOf(round) {
  const first = round % clients.length;
  return [...clients.slice(first), ...clients.slice(0, first)];
}

/** One value for each scenario and client. */
function mapCells(cellOf) {
  const row = (scenario) => Object.fromEntries(clients.map((client) => [client, cellOf(scenario, client)]));
  return Object.fromEntries(scenarios.map((scenario) => [scenario, row(scenario)]));
}

function combine(figures) {
  const figure = (column) => {
    const values = figures.map((round) => round[column]);
    if (values[0] === undefined) return undefined;
    return TOTALED_COLUMNS.has(column) ? sum(values) : median(values);
  };
  return Object.fromEntries(Object.keys(figures[0]).map((column) => [column, figure(column)]));
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
}

/**
 * Measures a cell until steal is at most `MAX_STEAL`, at most `MAX_MEASUREMENTS` times. Resolves to the measurement with
 * the lowest steal, but with the wrong results of all of them, because steal does not excuse those.
 */
async function measure(client, scenario) {
  const all = [];
  do all.push(await measureOnce(client, scenario));
  while (all.length < MAX_MEASUREMENTS && all.every(({ steal }) => steal > MAX_STEAL));
  const [figures, ...repeated] = all.toSorted((a, b) => a.steal - b.steal);
  stealRepeats[client].push(...repeated);
  for (const column of WRONG_RESULTS)
    if (figures[column] !== undefined) figures[column] = sum(all.map((measurement) => measurement[column]));
  return figures;
}

async function measureOnce(client, scenario) {
  const { samples, ...figures } = await runWithRetries(client, scenario);
  const texts = Object.entries(figures)
    .filter(([, value]) => value !== undefined)
    .map(([column, value]) => `${column} ${textOf(column, value)}`);
  process.stdout.write(`${client}, ${scenario}: ${texts.join(', ')}\n`);
  return figures;
}

// A Docker command can fail on a busy engine. That must not end a run of an hour and a half.
async function runWithRetries(client, scenario) {
  for (let attempt = 1; ; attempt++) {
    try {
      const figures = await SCENARIOS[scenario].run(client);
      // While the containers are removed, a measurement can end without an error.
      if (isStopping) throw new Error('The run was interrupted.');
      return figures;
    } catch (error) {
      process.stdout.write(`${client}, ${scenario}: attempt ${attempt} failed: ${error.message}\n`);
      if (attempt === MAX_ATTEMPTS || isStopping) throw error;
      failedMeasurements.push(`${CLIENTS[client]}, ${SCENARIOS[scenario].title}`);
    }
  }
}

const textOf = (column, value) => (column === 'sent' ? String(value) : (FORMATS[column] ?? ms)(value));

function table(head, rows) {
  return [head, head.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** The text of a figure, in bold if it is among the best. */
function cell(scenario, column, client) {
  const value = results[scenario][client][column];
  if (value === undefined) return '';
  const text = textOf(column, value);
  const marked = bestClients(scenario, column).has(client) ? `**${text}**` : text;
  if (column !== 'slowest' || rounds === 1) return marked;
  const durations = durationsOf(scenario, client);
  const range = `(${ms(Math.min(...durations))} to ${ms(Math.max(...durations))})`;
  return `${marked}${isNotSignificantlySlower(scenario, client) ? ' †' : ''} ${range}`;
}

const durationsOf = (scenario, client) => measured[scenario][client].map((round) => round.slowest);

/** Whether a client is slower than the best ones in `slowest`, but not significantly slower than any of them. */
function isNotSignificantlySlower(scenario, client) {
  if (rounds < MIN_ROUNDS_FOR_TEST) return false;
  const best = bestClients(scenario, 'slowest');
  if (best.has(client) || !bestClients(scenario, 'failed').has(client)) return false;
  const isNotSignificant = (other) =>
    rankSumPValue(durationsOf(scenario, client), durationsOf(scenario, other)) > SIGNIFICANCE_LEVEL;
  return [...best].every(isNotSignificant);
}

/**
 * The p-value of the exact one-sided rank-sum test (Wilcoxon, 1945): the probability of a rank sum at least as high as
 * that of `values` if both samples have the same distribution.
 */
function rankSumPValue(values, others) {
  const all = [...values, ...others];
  const below = (value) => all.filter((other) => other < value).length;
  const ranks = all.map((value) => below(value) + all.filter((other) => other === value).length / 2);
  const rankSums = subsets(ranks, values.length).map(sum);
  const observed = sum(ranks.slice(0, values.length));
  return rankSums.filter((rankSum) => rankSum >= observed).length / rankSums.length;
}

function subsets([first, ...rest], size) {
  if (size === 0) return [[]];
  if (first === undefined) return [];
  return [...subsets(rest, size - 1).map((subset) => [first, ...subset]), ...subsets(rest, size)];
}

/** The clients whose figure, as printed, equals the best one. */
function bestClients(scenario, column) {
  if (NOT_RANKED.has(column)) return new Set();
  const hasNoWrongResults = (client) => WRONG_RESULTS.every((wrong) => !results[scenario][client][wrong]);
  let ranked = clients.filter((client) => results[scenario][client][column] !== undefined);
  if (column === 'failed') ranked = ranked.filter(hasNoWrongResults);
  // A client that fails early can have good times, so times are only compared among clients with the fewest failures.
  else if (!WRONG_RESULTS.includes(column)) ranked = [...bestClients(scenario, 'failed')];
  const figure = (client) => results[scenario][client][column];
  const distance = DISTANCE[column] ?? Number;
  const best = ranked.toSorted((a, b) => distance(figure(a)) - distance(figure(b)))[0];
  return new Set(ranked.filter((client) => textOf(column, figure(client)) === textOf(column, figure(best))));
}

function summary() {
  const head = ['client', ...scenarios.map((scenario) => SCENARIOS[scenario].title)];
  const cells = (client) => scenarios.map((scenario) => summaryCell(scenario, client));
  return table(
    head,
    clients.map((client) => [CLIENTS[client], ...cells(client)]),
  );
}

function summaryCell(scenario, client) {
  const { columns = {} } = SCENARIOS[scenario];
  const wrong = WRONG_RESULTS.filter((column) => results[scenario][client][column])
    .map((column) => ` (${results[scenario][client][column]} ${columns[column]})`)
    .join('');
  return cell(scenario, 'failed', client) + wrong;
}

function section(scenario) {
  const { title, description, columns = {} } = SCENARIOS[scenario];
  const all = { ...COMMON_COLUMNS, ...columns };
  const rows = clients.map((client) => [
    CLIENTS[client],
    results[scenario][client].sent,
    ...Object.keys(all).map((column) => cell(scenario, column, client)),
  ]);
  const text = table(['client', 'sent', ...Object.values(all)], rows);
  return [`## ${title}`, description, text].filter(Boolean).join('\n\n');
}

async function readVersions() {
  const { dependencies } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  const named = ['undici', 'axios', 'axios-retry', 'got', 'cockatiel'].map(
    (name) => `${name} ${dependencies[name]}`,
  );
  const node = await docker('run', '--rm', 'onehop-fire-caller', 'node', '--version');
  const haproxy = await docker('run', '--rm', '--entrypoint', 'haproxy', 'haproxy:3.0', '-v');
  const engine = await docker('version', '--format', '{{.Server.Version}}');
  return [
    `Node ${node.slice(1)}`,
    `Docker ${engine}`,
    ...named,
    /HAProxy version [\d.]+/.exec(haproxy)[0].replace(' version', ''),
  ].join(', ');
}

function roundsText() {
  if (rounds === 1) return 'Each cell is one measurement, and the best figures are in bold.';
  return `Each cell was measured ${rounds} times, in ${rounds} rounds. Each round measures the scenarios one after the other, each with all clients, and starts with a different client. "Sent", "failed", "sent twice", "stored twice" and "acknowledged and missing" are totals; every other figure is the median, and the range of "slowest" follows in parentheses. The best figures are in bold.${testText()}`;
}

function testText() {
  if (rounds < MIN_ROUNDS_FOR_TEST) return '';
  return ` In the column "slowest", † marks a client that is not the best, but is not significantly slower than the best one (exact one-sided rank-sum test, p > ${SIGNIFICANCE_LEVEL}, not corrected for multiple comparisons; if several clients are equally good, † marks one that is not significantly slower than any of them). The other columns were not tested. With so few measurements, the test can miss a real difference, so † does not mean that two clients are equally fast.`;
}

function failedMeasurementsText() {
  if (failedMeasurements.length === 0) return '';
  return ` These measurements were repeated, because Docker or the load generator failed, or because requests failed before the disruption: ${failedMeasurements.join('; ')}.`;
}

const interruptedText = () => (rounds < requestedRounds ? `, which ended in round ${rounds + 1}` : '');

function stealText() {
  const steals = clients.flatMap((client) =>
    scenarios.flatMap((scenario) => measured[scenario][client].map(({ steal }) => steal)),
  );
  if (steals.includes(undefined)) return 'This system does not report steal.';
  const tooHigh = steals.filter((steal) => steal > MAX_STEAL).length;
  return `Steal is the time in which the hypervisor did not run a virtual CPU that was ready to run, as a share of the time of all virtual CPUs. A measurement with more than ${percent(MAX_STEAL)} steal was repeated, up to ${MAX_MEASUREMENTS - 1} times, and the one with the lowest steal is reported, whatever its other figures. Steal exceeded ${percent(MAX_STEAL)} in ${tooHigh} of the ${steals.length} reported measurements; the median is ${decimalPercent(median(steals))}, the maximum ${decimalPercent(Math.max(...steals))}. Even with less steal, the host may have paused the machine once for several hundred milliseconds, so a single slow request may be due to the host. ${repeatsText()}`;
}

function repeatsText() {
  const repeats = clients.filter((client) => stealRepeats[client].length > 0).map(repeatsOf);
  if (repeats.length === 0) return 'No measurement was repeated because of steal.';
  return `Each of these measurements was replaced by one with less steal (in parentheses: the slowest request of each, as a range in milliseconds, and the total number of failed requests): ${repeats.join('; ')}. The tables include the wrong results of \`POST\` of these measurements, but not their other figures.`;
}

function repeatsOf(client) {
  const repeats = stealRepeats[client];
  const slowest = repeats.map((figures) => figures.slowest);
  const range = `${ms(Math.min(...slowest))} to ${ms(Math.max(...slowest))}`;
  return `${CLIENTS[client]} ${repeats.length} (${range}, ${sum(repeats.map(({ failed }) => failed))} failed)`;
}

function report(versions) {
  return `# next-hop and other clients while api2 fails

${new Date().toISOString().slice(0, 10)}, ${cpus()[0].model.trim()}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB. ${versions}, next-hop at commit ${commit}. All figures are from one run of \`ROUNDS=${requestedRounds} npm run bench:fire\`${interruptedText()}.

A small service, the caller, sends a request to api2 for each request that it gets. It is the same for all clients, except that HAProxy runs next to it as a sidecar. The caller and three replicas of api2 are containers of one Docker network; a load generator on the host sends 200 requests per second without waiting for responses. Each scenario starts with a new caller. Before the measurement, the caller gets 1000 \`GET\` requests, two at a time, so that V8 has already optimized the code for them, and then 200 requests per second for one to ten seconds, until the last 50 requests of a second succeed and steal is at most 5 %. After ten seconds, higher steal is accepted. Before the scenario with \`POST\`, these are \`GET\` requests, too. next-hop also calls its function \`warmUp\` at the start; the other clients have no such function. Where one of three replicas fails, it is the one that received the most requests just before: a client that keeps using one connection would otherwise notice nothing in two of three runs. Where the requests are balanced, this makes no difference.

A request failed if it had no complete 2xx response within the deadline of 2 s (plus a margin of 0.1 s). The timeout per attempt, for clients that have one, is 650 ms, with two retries, so that three attempts fit into the deadline. [clients/](fire/clients) and [haproxy.cfg](fire/haproxy.cfg) show all settings and link the documentation that they follow. The column "requests to api2" is the number of requests that api2 completed, according to its log, for each request of the load (requests that a killed replica had not yet logged are not counted). Times are in milliseconds, measured by the load generator.

${roundsText()} A client that fails early can have good times, so times are compared only among the clients whose number of failures is in bold.${failedMeasurementsText()}

${stealText()}

## Failed requests

${summary()}

${scenarios.map(section).join('\n\n')}
`;
}

/** The report on the complete rounds. */
let text = '';
for (const signal of ['SIGINT', 'SIGTERM'])
  process.once(signal, () => {
    isStopping = true;
    if (!isComplete) process.stdout.write(`\n${text}`);
    down().finally(() => process.exit(1));
  });
try {
  await down();
  await compose('', 'build', 'api2', 'caller');
  const versions = await readVersions();
  while (rounds < requestedRounds) {
    await measureRound();
    text = report(versions);
    // Write the report after each round, so that a run that is ended keeps its complete rounds.
    if (isComplete) writeFileSync(new URL('../FIRE.md', import.meta.url), text);
  }
} finally {
  if (!isComplete && !isStopping) process.stdout.write(`\n${text}`);
  await down();
}
