// Compares NextHop with a plain undici Pool: `npm run bench:client`. Both send requests to the same next hop, in rounds
// that alternate, over 64 connections, from one core; the next hop has the other core. It counts requests per second
// of CPU time of this process, so that other load on the machine matters less.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';

const PORT = 18_090;
const ORIGIN = `http://127.0.0.1:${PORT}`;
const CONNECTIONS = 64;
const ROUND_MS = 500;
const ROUNDS = 21;
const NEXT_HOP_PROGRAM = fileURLToPath(new URL('next-hop.js', import.meta.url));

const require = createRequire(new URL('../package.json', import.meta.url));
const { NextHop } = require('next-hop');
const { Pool } = require('undici');

const nextHopProcess = spawn('taskset', ['-c', '1', process.execPath, NEXT_HOP_PROGRAM], {
  env: { ...process.env, PORT },
  stdio: 'inherit',
});
execFileSync('taskset', ['-acp', '0', process.pid], { stdio: 'ignore' });
await listening();

const nextHop = new NextHop(ORIGIN, { connections: CONNECTIONS });
const pool = new Pool(ORIGIN, { connections: CONNECTIONS, pipelining: 1 });
const request = { path: '/', method: 'GET' };
const clients = {
  'Pool request': async () => (await pool.request(request)).body.text(),
  'NextHop request': async () => (await nextHop.request(request)).body.text(),
  'NextHop get': async () => (await nextHop.get('/')).text(),
};

const perSecond = Object.fromEntries(Object.keys(clients).map((name) => [name, []]));
for (let round = 0; round <= ROUNDS; round++)
  for (const [name, send] of Object.entries(clients)) {
    const measured = await requestsPerSecond(send);
    // The first round warms up.
    if (round > 0) perSecond[name].push(measured);
  }

const baseline = median(perSecond['Pool request']);
for (const [name, rounds] of Object.entries(perSecond)) {
  const ratio = (median(rounds) / baseline).toFixed(2);
  const line = `${Math.round(median(rounds))} requests per CPU second, ${ratio} of Pool request`;
  process.stdout.write(`${name.padEnd(16)} ${line}\n`);
}
await Promise.all([nextHop.close(), pool.close()]);
nextHopProcess.kill();

async function requestsPerSecond(send) {
  const startMs = performance.now();
  const before = process.cpuUsage();
  let requests = 0;
  const sendAll = async () => {
    while (performance.now() - startMs < ROUND_MS) {
      await send();
      requests++;
    }
  };
  await Promise.all(Array.from({ length: CONNECTIONS }, sendAll));
  const { user, system } = process.cpuUsage(before);
  return (requests * 1e6) / (user + system);
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}

async function listening() {
  for (let attempts = 0; attempts < 50; attempts++) {
    const socket = connect(PORT, '127.0.0.1');
    const [result] = await Promise.race([
      once(socket, 'connect').then(() => ['connected']),
      once(socket, 'error').then(() => ['refused']),
    ]).catch(() => ['refused']);
    socket.destroy();
    if (result === 'connected') return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`no next hop on port ${PORT}`);
}
