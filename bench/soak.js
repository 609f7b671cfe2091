// npm run bench:soak: api at full load for 30 minutes (or MINUTES), with 2 % of the clients leaving before they have
// a response and 2 % of the attempts failing. Checks that its memory does not grow and that each response belongs to
// its request.
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  kill,
  median,
  memoryMiB,
  moveToOtherCore,
  OTHER_CORE,
  outputOf,
  startNode,
  startServer,
  waitUntilReady,
} from './processes.js';

const MINUTES = Number(process.env.MINUTES ?? 30);
const SAMPLE_MS = 2000;
if (!(MINUTES >= 3)) throw new Error('MINUTES must be at least 3');
const SAMPLES_PER_MINUTE = 60_000 / SAMPLE_MS;
const NEXT_HOP_PORT = 18_280;
const PORT = 18_282;

moveToOtherCore();
startNode(OTHER_CORE, ['soak/next-hop.js'], { env: { PORT: String(NEXT_HOP_PORT) } });
const api = startServer('../dist/services/api/main.js', PORT, {
  API2_URL: `http://127.0.0.1:${NEXT_HOP_PORT}`,
});
await waitUntilReady(`http://127.0.0.1:${PORT}/hello`);
const load = startNode(OTHER_CORE, ['soak/load.js', String(PORT), String(MINUTES)]);
const counted = outputOf(load);
let hasEnded = false;
counted.then(() => {
  hasEnded = true;
});
const samples = [];
const isRunning = () => api.exitCode === null && api.signalCode === null;
while (!hasEnded) {
  await sleep(SAMPLE_MS);
  if (!isRunning()) throw new Error('api has exited');
  samples.push(memoryMiB(api.pid, 'VmRSS'));
}
const counts = JSON.parse(await counted);
await kill(api);

// The median of a minute, because the memory in use goes up and down with each garbage collection.
const early = median(samples.slice(SAMPLES_PER_MINUTE, 2 * SAMPLES_PER_MINUTE));
const late = median(samples.slice(-SAMPLES_PER_MINUTE));
process.stdout.write(`${MINUTES} minutes: ${JSON.stringify(counts)}
memory: ${early.toFixed(0)} MiB in the second minute, ${late.toFixed(0)} MiB in the last one (${(late / early).toFixed(2)}), max ${Math.max(...samples).toFixed(0)} MiB
`);
// 2 % of the attempts fail, so all three attempts of a request fail for fewer than 1 in 100,000. 1 in 1000 leaves a margin.
const isGood =
  counts.wrong === 0 && counts.closed === 0 && counts.failed < counts.ok / 1000 && late <= early * 1.1;
const result = {
  date: new Date().toISOString().slice(0, 10),
  minutes: MINUTES,
  passed: isGood,
  ...counts,
  secondMinuteMiB: early,
  lastMinuteMiB: late,
};
// run.js adds this to bench/RESULTS.md. Runs of less than 30 minutes are only trials.
if (MINUTES >= 30) writeFileSync('soak/result.json', `${JSON.stringify(result, null, 2)}\n`);
process.stdout.write(isGood ? 'passed\n' : 'failed: see above\n');
process.exit(isGood ? 0 : 1);
