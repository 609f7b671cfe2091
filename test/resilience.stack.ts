import { connect } from 'node:net';
import { request } from 'undici';
import { LoadGenerator } from './load';
import { docker, Stack } from './stack';

const stack = new Stack('onehop-resilience', 18_090);
const hello = new URL('/hello', stack.url);
const REQUESTS_PER_SECOND = 200;

beforeAll(async () => {
  await stack.requireEngine();
  await stack.down();
  await stack.compose('up', '--build', '--detach', '--wait');
}, 300_000);

afterAll(() => stack.down(), 60_000);

// Each test starts with a known number of replicas, whatever the previous test left behind.
async function withReplicas(replicas: number) {
  for (const container of await stack.containers('api2')) await docker('unpause', container).catch(() => {});
  await waitUntil(() =>
    stack.compose('up', '--detach', '--wait', '--scale', `api2=${replicas}`).then(() => true),
  );
  for (const container of await stack.containers('api2')) await fault(container, 'off');
  await waitUntil(isSettled);
}

// A container that was paused is unhealthy until its next health check, and `up --wait` fails until then.
async function waitUntil(condition: () => Promise<boolean>) {
  const deadlineMs = performance.now() + 30_000;
  while (!(await condition().catch(() => false))) {
    if (performance.now() > deadlineMs) throw new Error('the stack did not settle within 30 s');
    await sleep(200);
  }
}

// All replicas serve requests: none is still ejected because of the previous test.
async function isSettled() {
  const before = await responseCounts('200');
  for (let i = 0; i < 30; i++) {
    const { statusCode, body } = await request(hello);
    await body.dump();
    if (statusCode !== 200) return false;
  }
  const after = await responseCounts('200');
  return after.every((count, i) => count > (before[i] ?? 0));
}

const fault = (container: string, ...args: string[]) =>
  docker('exec', container, '/nodejs/bin/node', 'services/api2/fault-command.js', ...args);

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const scale = (replicas: number) =>
  stack.compose('up', '--detach', '--wait', '--no-recreate', '--scale', `api2=${replicas}`);

/** Runs `disturb` under load, and prints a summary. */
async function underLoad(name: string, disturb: () => Promise<unknown>) {
  const load = new LoadGenerator(hello, REQUESTS_PER_SECOND);
  await sleep(1000);
  try {
    await disturb();
    await sleep(1000);
  } catch (error) {
    await load.stop();
    throw error;
  }
  const summary = await load.stop();
  process.stdout.write(
    `${name}: sent ${summary.sent}, failed ${summary.failed}, slowest ${summary.slowestMs} ms\n`,
  );
  return { ...summary, samples: load.samples };
}

/** The number of responses with `status` that each replica has sent. */
async function responseCounts(status: string) {
  return Promise.all((await stack.containers('api2')).map((container) => responseCount(container, status)));
}

async function responseCount(container: string, status: string) {
  const program = "fetch('http://127.0.0.1:9090/metrics').then(async (r) => console.log(await r.text()))";
  const exposition = await docker('exec', container, '/nodejs/bin/node', '-e', program);
  const line = new RegExp(`seconds_count\\{method="GET",route="[^"]*",status="${status}"\\} (\\d+)`, 'g');
  return [...exposition.matchAll(line)].reduce((sum, [, count]) => sum + Number(count), 0);
}

async function measureShares(durationMs: number) {
  const before = await responseCounts('200');
  await sleep(durationMs);
  const after = await responseCounts('200');
  const counts = after.map((count, i) => count - (before[i] ?? 0));
  const total = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => count / total);
}

test('scale-up from 1 to 3: no request fails, and each replica serves at least 20 % within 10 s', async () => {
  await withReplicas(1);
  let shares: number[] = [];
  const { failed } = await underLoad('scale-up from 1 to 3', async () => {
    await scale(3);
    await sleep(5000);
    shares = await measureShares(3000);
  });
  process.stdout.write(`  shares: ${shares.map((share) => `${(share * 100).toFixed(1)} %`).join(', ')}\n`);
  expect(failed).toBe(0);
  expect(shares).toHaveLength(3);
  for (const share of shares) expect(share).toBeGreaterThanOrEqual(0.2);
}, 90_000);

test('rolling restart of 3 replicas: no request fails', async () => {
  await withReplicas(3);
  const { failed } = await underLoad('rolling restart', async () => {
    for (const container of await stack.containers('api2')) {
      await docker('restart', container);
      await sleep(1000);
    }
  });
  expect(failed).toBe(0);
}, 90_000);

test('kill -9 of 1 replica of 3: no request fails', async () => {
  await withReplicas(3);
  const [, second] = await stack.containers('api2');
  const { failed } = await underLoad('kill -9', async () => {
    await docker('kill', '--signal', 'KILL', String(second));
    await sleep(3000);
  });
  expect(failed).toBe(0);
}, 90_000);

test('1 replica of 3 frozen for 6 s: no request fails, and none takes 300 ms or longer', async () => {
  await withReplicas(3);
  const [, , third] = await stack.containers('api2');
  const { failed, slowestMs, samples } = await underLoad('frozen replica', async () => {
    await docker('pause', String(third));
    await sleep(6000);
    await docker('unpause', String(third));
  });
  const sortedMs = samples.map(({ durationMs }) => durationMs).sort((a, b) => a - b);
  const p999Ms = sortedMs[Math.floor(sortedMs.length * 0.999)] ?? Number.POSITIVE_INFINITY;
  process.stdout.write(`  p99.9: ${Math.round(p999Ms)} ms\n`);
  expect(samples.length).toBeGreaterThan(800);
  expect(failed).toBe(0);
  // The limits are twice the goals of 100 and 150 ms: with 30 % of both CPUs used by other processes, 118 and 131 ms were
  // measured.
  expect(p999Ms).toBeLessThan(200);
  expect(slowestMs).toBeLessThan(300);
}, 90_000);

test('1 replica of 3 pauses for 100 ms each second: at most 1.05 requests to api2 for each request', async () => {
  await withReplicas(3);
  const [, , third] = await stack.containers('api2');
  const before = await responseCounts('[^"]*');
  const { sent, failed } = await underLoad('short pauses', async () => {
    for (let i = 0; i < 8; i++) {
      await docker('pause', String(third));
      await sleep(100);
      await docker('unpause', String(third));
      await sleep(900);
    }
  });
  const after = await responseCounts('[^"]*');
  const attempts = after.reduce((sum, count, i) => sum + count - (before[i] ?? 0), 0);
  process.stdout.write(`  requests to api2 per request: ${(attempts / sent).toFixed(3)}\n`);
  expect(failed).toBe(0);
  expect(attempts / sent).toBeLessThanOrEqual(1.05);
}, 90_000);

test('1 replica of 3 resets half of its connections: under 0.5 % fail', async () => {
  await withReplicas(3);
  const [first] = await stack.containers('api2');
  const { sent, failed } = await underLoad('resets', async () => {
    await fault(String(first), 'reset', 'rate=0.5');
    await sleep(6000);
  });
  expect(failed / sent).toBeLessThan(0.005);
}, 90_000);

test('1 replica of 3 responds 503 immediately, the others 200 after 50 ms: under 1 % fail', async () => {
  await withReplicas(3);
  const [first, ...others] = await stack.containers('api2');
  for (const container of others) await fault(container, 'delay', 'delayMs=50');
  const { sent, failed } = await underLoad('one replica responds 503', async () => {
    await fault(String(first), 'status', 'status=503');
    await sleep(10_000);
  });
  expect(failed / sent).toBeLessThan(0.01);
}, 90_000);

test("all 3 replicas respond 503: api reports api2's status and sends at most 1.25 requests to api2 for each of its own", async () => {
  await withReplicas(3);
  for (const container of await stack.containers('api2')) await fault(container, 'status', 'status=503');
  const before = await responseCounts('503');
  const { sent, samples } = await underLoad('all replicas respond 503', () => sleep(8000));
  const after = await responseCounts('503');
  const attempts = after.reduce((sum, count, i) => sum + count - (before[i] ?? 0), 0);
  process.stdout.write(`  requests to api2 per request: ${(attempts / sent).toFixed(3)}\n`);
  for (const { proxyStatus } of samples) expect(proxyStatus).toBe('api; received-status=503; next-hop=api2');
  expect(attempts / sent).toBeGreaterThanOrEqual(1);
  expect(attempts / sent).toBeLessThanOrEqual(1.25);
}, 90_000);

test('scale-down from 3 to 1: no request fails', async () => {
  await withReplicas(3);
  const { failed } = await underLoad('scale 3 → 1', async () => {
    await scale(1);
    await sleep(3000);
  });
  expect(failed).toBe(0);
}, 90_000);

test('api2 removed and started again: errors within the deadline, first success within 3 s of readiness', async () => {
  await withReplicas(1);
  const { samples } = await underLoad('api2 removed', async () => {
    await stack.compose('rm', '--stop', '--force', 'api2');
    await sleep(4000);
  });
  // Measured by api: the engine can delay packets for half a second while it disconnects a container from its networks.
  const serverMs = Math.max(...samples.map((sample) => sample.serverMs));
  process.stdout.write(`  slowest as measured by api: ${Math.round(serverMs)} ms\n`);
  // The deadline is 2 s. A timer of a busy process fires late, so the bound only excludes a second deadline.
  expect(serverMs).toBeLessThan(3000);
  expect(samples.at(-1)?.status).toBe(500);
  const recovery = new LoadGenerator(hello, REQUESTS_PER_SECOND);
  await scale(1);
  const readyMs = performance.now();
  await sleep(3500);
  await recovery.stop();
  const firstMs = recovery.samples.find(({ status }) => status === 200)?.sentAtMs ?? Number.POSITIVE_INFINITY;
  process.stdout.write(`  first success ${Math.round(firstMs - readyMs)} ms after readiness\n`);
  expect(firstMs - readyMs).toBeLessThan(3000);
}, 90_000);

test('3000 clients that repeat requests without a pause: api stays within its memory limit and keeps responding', async () => {
  await withReplicas(1);
  const [api] = await stack.containers('api');
  const counts = new Map<string, number>();
  const clients = Array.from({ length: 3000 }, () => greedyClient(counts));
  await sleep(10_000);
  for (const client of clients) client.destroy();
  const [succeeded = 0, rejected = 0] = ['200', '503'].map((status) => counts.get(status));
  process.stdout.write(`  200: ${succeeded}, 503: ${rejected}\n`);
  expect(succeeded).toBeGreaterThan(3000);
  expect(rejected).toBeGreaterThan(0);
  expect(await docker('inspect', '--format', '{{.RestartCount}}', String(api))).toBe('0');
  await sleep(1000);
  const { statusCode, body } = await request(hello);
  await body.dump();
  expect(statusCode).toBe(200);
}, 90_000);

function greedyClient(counts: Map<string, number>) {
  const socket = connect(Number(hello.port), hello.hostname);
  const sendRequest = () => socket.write(`GET ${hello.pathname} HTTP/1.1\r\nhost: a\r\n\r\n`);
  socket.on('error', () => {});
  socket.on('connect', sendRequest);
  socket.on('data', (data) => {
    const status = /^HTTP\/1\.1 (\d+)/.exec(data.toString('latin1', 0, 16))?.[1];
    // A later chunk of a response.
    if (status === undefined) return;
    counts.set(status, (counts.get(status) ?? 0) + 1);
    sendRequest();
  });
  return socket;
}

test('image layers above the base stay under 40 MB, idle memory of both services under 200 MiB', async () => {
  await withReplicas(1);
  const [api, api2] = [...(await stack.containers('api')), ...(await stack.containers('api2'))];
  for (const container of [api, api2]) {
    const image = await docker('inspect', '--format', '{{.Image}}', String(container));
    const sizes = await docker(
      'history',
      '--format',
      '{{.Size}} {{.CreatedBy}}',
      '--no-trunc',
      '--human=false',
      image,
    );
    const ownLayers = sizes.split('\n').filter((line) => line.includes('buildkit'));
    const bytes = ownLayers.reduce((sum, line) => sum + Number(line.split(' ')[0]), 0);
    process.stdout.write(`  layers above the base image: ${(bytes / 1e6).toFixed(1)} MB\n`);
    expect(bytes).toBeGreaterThan(1e6);
    expect(bytes).toBeLessThan(40e6);
  }
  await stack.compose('restart');
  await sleep(3000);
  const usage = await docker('stats', '--no-stream', '--format', '{{.MemUsage}}', String(api), String(api2));
  const mebibytes = usage.split('\n').map((line) => Number.parseFloat(line));
  process.stdout.write(`  idle memory: ${mebibytes.join(' + ')} MiB\n`);
  expect(mebibytes.reduce((sum, used) => sum + used, 0)).toBeLessThan(200);
}, 90_000);

test('docker compose stop: both services exit 0 within the stop grace period', async () => {
  await withReplicas(1);
  const containers = [...(await stack.containers('api')), ...(await stack.containers('api2'))];
  const { statusCode, body } = await request(hello);
  await body.dump();
  expect(statusCode).toBe(200);
  const startedMs = performance.now();
  await stack.compose('stop');
  expect(performance.now() - startedMs).toBeLessThan(15_000);
  for (const container of containers)
    expect(await docker('inspect', '--format', '{{.State.ExitCode}}', container)).toBe('0');
}, 90_000);
