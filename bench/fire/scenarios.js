import { setTimeout as sleep } from 'node:timers/promises';
import { Load } from './load.js';
import * as stack from './stack.js';
import { MAX_STEAL, startStealMeter } from './steal.js';

const PER_SECOND = 200;
// Around the 500th request, V8 optimizes more than 100 functions of the caller, which keeps both cores busy for 15 ms.
const WARM_UP_REQUESTS = 1000;
// api2 writes its log lines in batches.
const LOG_DELAY_MS = 300;
// The maximum number of one-second loads before a measurement.
const MAX_LOADS = 10;

/**
 * The scenarios. Each resolves to the figures of one client: `failed`, `sent`, `slowest`, `p99`, `requests` (that api2
 * completed for each one sent), `steal` (from 0 to 1), and those that its `columns` name.
 */
export const SCENARIOS = {
  scale: {
    title: 'Scaled from 1 to 3 replicas',
    description:
      'The share is the part of the requests that the two new replicas served together from 10 s to 13 s after they were ready; an even share is two thirds.',
    columns: { share: 'share of the new replicas' },
    async run(client) {
      const [old] = await prepare(client, 1);
      let sinceMs;
      const figures = await underLoad(async () => {
        await stack.scale(3);
        await sleep(10_000);
        sinceMs = Date.now();
        await sleep(3000);
      });
      const counts = await requestCounts(sinceMs, sinceMs + 3000);
      const total = sum([...counts.values()]);
      return { ...figures, share: (total - counts.get(old)) / total };
    },
  },
  nothing: {
    title: 'Nothing happens',
    description: 'The CPU time is that of the caller, and for HAProxy also that of the sidecar.',
    columns: { p50: 'p50', cpu: 'CPU per request' },
    async run(client) {
      await prepare(client, 3);
      const before = await stack.cpuMs(client);
      const figures = await underLoad(() => sleep(6000));
      return { ...figures, cpu: ((await stack.cpuMs(client)) - before) / figures.sent };
    },
  },
  restart: {
    title: '3 replicas restarted one by one',
    async run(client) {
      const names = await prepare(client, 3);
      return underLoad(async () => {
        for (const name of names) {
          await stack.docker('restart', name);
          await sleep(1000);
        }
      });
    },
  },
  kill: {
    title: '`kill -9` of 1 of 3 replicas',
    async run(client) {
      const [busiest] = await prepare(client, 3);
      return underLoad(async () => {
        await kill(busiest);
        await sleep(4000);
      });
    },
  },
  frozen: {
    title: '1 of 3 replicas frozen for 6 s',
    columns: { p999: 'p99.9' },
    async run(client) {
      const [busiest] = await prepare(client, 3);
      return underLoad(async () => {
        await stack.docker('pause', busiest);
        await sleep(6000);
        await stack.docker('unpause', busiest);
      });
    },
  },
  status: {
    title: '1 of 3 replicas responds 503 at once, the others respond after 50 ms',
    async run(client) {
      const [busiest, ...others] = await prepare(client, 3);
      await Promise.all(others.map((name) => stack.fault(name, 'delay', 'delayMs=50')));
      const setFault = await stack.prepareFault(busiest, 'status', 'status=503');
      return underLoad(async () => {
        await setFault();
        await sleep(7000);
      });
    },
  },
  reset: {
    title: '1 of 3 replicas resets half of its connections',
    async run(client) {
      const [busiest] = await prepare(client, 3);
      const setFault = await stack.prepareFault(busiest, 'reset', 'rate=0.5');
      return underLoad(async () => {
        await setFault();
        await sleep(7000);
      });
    },
  },
  post: {
    title: '`POST` while replicas are killed with `kill -9`, one after the other, six times',
    description:
      'Each request stores a book with a unique title. Three results are wrong: a request is sent twice (api2 may have executed the first one), a book is stored twice, or a book is missing although the client reported success. A client with a wrong result gets no bold figure for failures or times. Requests are counted as the caller sends them, so those that HAProxy repeats are not measured; its configuration allows that only if nothing was sent.',
    columns: { sentTwice: 'sent twice', storedTwice: 'stored twice', missing: 'acknowledged and missing' },
    async run(client) {
      const names = await prepare(client, 3, { countsSends: true });
      const prefix = `${client} ${Date.now()}`;
      const titleOf = (number) => `${prefix} ${number}`;
      const bodyOf = (number) => JSON.stringify({ title: titleOf(number), author: 'Anonymous' });
      const figures = await underLoad(async () => {
        for (const name of [...names, ...names]) {
          await kill(name);
          await sleep(300);
          await stack.start(name);
        }
      }, bodyOf);
      const stored = countEach((await stack.storedTitles()).filter((title) => title.startsWith(prefix)));
      const acknowledged = figures.samples.filter(({ status }) => status === 200);
      return {
        ...figures,
        sentTwice: client === 'haproxy' ? undefined : await stack.sentTwice(),
        storedTwice: [...stored.values()].filter((count) => count > 1).length,
        missing: acknowledged.filter(({ number }) => !stored.has(titleOf(number))).length,
      };
    },
  },
  gone: {
    title: 'All 3 replicas gone for 4 s and back',
    description:
      'The first success is the time from when the first replica accepts connections until the first 200. The other columns include only requests that were sent after that moment. Clients without a circuit breaker try to connect for each request; cockatiel rejects requests until a probe succeeds. next-hop rejects those for which it cannot connect within 25 ms.',
    columns: { first: 'first success' },
    async run(client) {
      const names = await prepare(client, 3);
      let readyMs;
      const figures = await underLoad(async () => {
        const killedMs = Date.now();
        await stack.docker('kill', '--signal', 'KILL', ...names);
        await sleep(4000);
        await stack.start(...names);
        await sleep(5000);
        readyMs = Math.min(...(await Promise.all(names.map((name) => listeningMs(name, killedMs)))));
      });
      const { samples } = figures;
      const responseMs = samples
        .filter(({ sentAt, durationMs, status }) => status === 200 && sentAt + durationMs >= readyMs)
        .map(({ sentAt, durationMs }) => sentAt + durationMs);
      const { requests, ...after } = figuresOf(samples.filter(({ sentAt }) => sentAt >= readyMs));
      return { ...after, steal: figures.steal, first: Math.min(...responseMs) - readyMs };
    },
  },
};

const sum = (values) => values.reduce((total, value) => total + value, 0);
const kill = (name) => stack.docker('kill', '--signal', 'KILL', name);

/**
 * Starts the caller with `count` healthy replicas of api2, sends it requests so that V8 optimizes its code, and then
 * waits until no request fails and steal is low (`settle`). Resolves to the names of the replicas. The one that got the
 * most requests comes first: a client that keeps using one connection would otherwise not notice that another replica
 * fails.
 */
async function prepare(client, count, { countsSends = false } = {}) {
  await stack.withReplicas(count);
  await stack.restartCaller(client, countsSends);
  await firstResponse();
  await Promise.all([warmUp(), warmUp()]);
  const sinceMs = await settle();
  await sleep(LOG_DELAY_MS);
  const counts = [...(await requestCounts(sinceMs))];
  return counts.sort(([, a], [, b]) => b - a).map(([name]) => name);
}

/**
 * Sends loads of one second until, in one of them, the last 50 requests succeed and steal is low. In load number
 * `MAX_LOADS`, high steal is accepted, and failed requests are an error. Resolves to the start of the last load, in
 * milliseconds since 1970.
 */
async function settle() {
  for (let loads = 1; ; loads++) {
    const sinceMs = Date.now();
    const readSteal = startStealMeter();
    const load = new Load(stack.CALLER_URL, PER_SECOND);
    await sleep(1000);
    const isStealLow = (readSteal() ?? 0) <= MAX_STEAL;
    const isReady = (await load.stop()).slice(-50).every(({ isFailed }) => !isFailed);
    if (isReady && (isStealLow || loads === MAX_LOADS)) return sinceMs;
    if (loads === MAX_LOADS) throw new Error('Requests failed although all replicas were healthy.');
  }
}

async function firstResponse() {
  for (let tries = 0; tries < 200; tries++) {
    const response = await fetch(stack.CALLER_URL).catch(() => undefined);
    await response?.arrayBuffer();
    if (response?.ok) return;
    await sleep(50);
  }
  throw new Error('The caller did not respond within 10 s.');
}

async function warmUp() {
  for (let sent = 0; sent < WARM_UP_REQUESTS / 2; sent++) await (await fetch(stack.CALLER_URL)).arrayBuffer();
}

/** Sends requests from a second before `disturb` until a second after it. */
async function underLoad(disturb, bodyOf) {
  // Collect garbage now. A full collection during the measurement would delay requests by up to 16 ms.
  globalThis.gc();
  const readSteal = startStealMeter();
  const sinceMs = Date.now();
  const load = new Load(stack.CALLER_URL, PER_SECOND, bodyOf);
  await sleep(1000);
  let steal;
  try {
    await disturb();
    await sleep(1000);
    steal = readSteal();
  } catch (error) {
    // Otherwise, the load would disturb the next measurements.
    await load.stop();
    throw error;
  }
  const samples = await load.stop();
  await sleep(LOG_DELAY_MS);
  const completed = sum([...(await requestCounts(sinceMs)).values()]);
  return { ...figuresOf(samples), requests: completed / samples.length, steal };
}

function figuresOf(samples) {
  const durations = samples.map(({ durationMs }) => durationMs).sort((a, b) => a - b);
  const percentile = (fraction) =>
    durations[Math.min(durations.length - 1, Math.floor(durations.length * fraction))];
  return {
    samples,
    sent: samples.length,
    failed: samples.filter(({ isFailed }) => isFailed).length,
    slowest: durations.at(-1),
    p50: percentile(0.5),
    p99: percentile(0.99),
    p999: percentile(0.999),
  };
}

/** The number of requests that each replica of api2 completed in a span of time. */
async function requestCounts(sinceMs, untilMs = Date.now()) {
  const names = await stack.replicas();
  const counts = names.map(async (name) => {
    const lines = await stack.logLines(name, sinceMs);
    const isInSpan = (time) => time >= sinceMs && time <= untilMs;
    const isCounted = ({ msg, time }) => msg === 'request completed' && isInSpan(Date.parse(time));
    return [name, lines.filter(isCounted).length];
  });
  return new Map(await Promise.all(counts));
}

/** When a replica that was started after `sinceMs` began to accept connections. */
async function listeningMs(name, sinceMs) {
  const line = (await stack.logLines(name, sinceMs)).find(({ msg }) => msg === 'listening');
  return Date.parse(line.time);
}

function countEach(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}
