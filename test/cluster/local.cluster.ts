import { setTimeout as sleep } from 'node:timers/promises';
import { evict } from './cluster';
import { failuresOf, hasSucceeded, Installation, type Pod } from './installation';
import { apply } from './overlay';

const NAMESPACE = 'onehop-test';
let installation: Installation;

jest.setTimeout(150_000);

beforeAll(async () => {
  installation = await Installation.create(NAMESPACE);
});

afterAll(() => installation.remove());

const print = (text: string) => process.stdout.write(`  ${text}\n`);

test('applied to an empty namespace: /hello responds with 200 within 5 s after both Deployments are available', async () => {
  // The cluster's DNS may cache that this name is unknown.
  await expect(installation.load.request(`http://api2-pods.${NAMESPACE}:8080/`)).rejects.toThrow('ENOTFOUND');
  await apply('local', NAMESPACE);
  await installation.waitUntilAvailable();
  const availableMs = performance.now();
  // Connections are refused until the node knows the endpoints of the Service.
  const isServed = () =>
    installation.hello().then(
      ({ status }) => status === 200,
      () => false,
    );
  while (!(await isServed())) await sleep(50);
  const elapsedMs = performance.now() - availableMs;
  print(`200 after ${Math.round(elapsedMs)} ms`);
  expect(elapsedMs).toBeLessThan(5000);
  for (let i = 0; i < 50; i++) expect((await installation.hello()).status).toBe(200);
});

test('the services run unprivileged: no root, no capabilities, a seccomp filter, a read-only root file system', async () => {
  const program = `
    const { readFileSync, writeFileSync } = require('node:fs');
    let write = 'possible';
    try { writeFileSync('/app/written', ''); } catch (error) { write = error.code; }
    console.log(readFileSync('/proc/1/status', 'utf8') + 'Write:\\t' + write);`;
  for (const service of ['api', 'api2'] as const) {
    const [pod] = await installation.pods(service);
    const status = await installation.exec(pod as Pod, program);
    expect(status).toMatch(/^Uid:\t65532\t65532\t65532\t65532$/m);
    expect(status).toMatch(/^CapEff:\t0+$/m);
    expect(status).toMatch(/^CapBnd:\t0+$/m);
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
    expect(status).toMatch(/^Write:\tEROFS$/m);
  }
});

test('upgrade of the only pod of api2 to a setting in a ConfigMap: no request fails, and the setting applies', async () => {
  const greeting = 'Hello from a ConfigMap!';
  expect((await installation.hello()).text).toBe('Hello World!');
  const loads = await installation.underLoad('rollout of api2, 1 pod', async () => {
    await installation.rollOut('api2', () => apply('local', NAMESPACE, greeting));
  });
  expect(failuresOf(loads)).toEqual([]);
  expect((await installation.hello()).text).toBe(greeting);
});

test('scale-up of api2 from 1 to 3: no request fails, and each pod serves at least a quarter within 35 s', async () => {
  let elapsedMs = 0;
  let shares: number[] = [];
  const loads = await installation.underLoad('scale-up of api2 from 1 to 3', async () => {
    await installation.scale('api2', 3);
    const availableMs = performance.now();
    const pods = await installation.pods('api2');
    expect(pods).toHaveLength(3);
    do {
      elapsedMs = performance.now() - availableMs;
      shares = await measureShares(pods);
    } while (Math.min(...shares) < 0.25 && elapsedMs < 35_000);
  });
  const percentages = shares.map((share) => `${Math.round(share * 100)} %`).join(', ');
  print(`shares ${percentages} from ${(elapsedMs / 1000).toFixed(1)} s after all pods are available`);
  expect(failuresOf(loads)).toEqual([]);
  expect(elapsedMs).toBeLessThan(35_000);
});

test('rollback of api2 with 3 pods: no request fails, and no POST is lost or stored twice', async () => {
  const loads = await installation.underLoad(
    'rollback of api2, 3 pods',
    async () => {
      await installation.rollOut('api2', () => installation.kubectl('rollout', 'undo', 'deployment/api2'));
    },
    { bookPrefix: 'Rollback' },
  );
  expect(failuresOf(loads)).toEqual([]);
  expect((await installation.hello()).text).toBe('Hello World!');
  const titles = await installation.titles('Rollback');
  expect(titles).toHaveLength(loads.at(-1)?.sent ?? 0);
  expect(new Set(titles).size).toBe(titles.length);
});

test('forced deletion of one of three pods of api2: no request fails', async () => {
  const [pod] = await installation.pods('api2');
  const loads = await installation.underLoad('forced deletion of a pod of api2', async () => {
    await installation.kubectl('delete', 'pod', String(pod?.name), '--grace-period=0', '--force');
    await sleep(5000);
    await installation.waitUntilAvailable();
  });
  expect(failuresOf(loads)).toEqual([]);
});

test('SIGKILL of one of three pods of api2: no request fails, and the container is restarted', async () => {
  const pod = (await installation.pods('api2'))[1] as Pod;
  const loads = await installation.underLoad('SIGKILL of a pod of api2', async () => {
    await installation.sigkill(pod);
    await sleep(5000);
  });
  expect(failuresOf(loads)).toEqual([]);
  const restarts = 'jsonpath={.status.containerStatuses[0].restartCount}';
  expect(await installation.kubectl('get', 'pod', pod.name, '-o', restarts)).toBe('1');
  await installation.waitUntilAvailable();
});

test('the disruption budget allows the eviction of one pod, and refuses a second one at the same time', async () => {
  const [first, second] = (await installation.pods('api2')) as [Pod, Pod];
  const loads = await installation.underLoad('eviction of a pod of api2', async () => {
    await evict(NAMESPACE, first.name);
    await expect(evict(NAMESPACE, second.name)).rejects.toThrow('disruption budget');
    await sleep(3000);
    await installation.waitUntilAvailable();
  });
  expect(failuresOf(loads)).toEqual([]);
});

test('scale-down of api2 from 3 to 1: no request fails', async () => {
  const loads = await installation.underLoad('scale-down of api2 from 3 to 1', async () => {
    await installation.untilStopped('api2', () => installation.scale('api2', 1));
  });
  expect(failuresOf(loads)).toEqual([]);
});

test('rollout of api with 2 pods: no request fails', async () => {
  await installation.scale('api', 2);
  const loads = await installation.underLoad('rollout of api, 2 pods', async () => {
    await installation.rollOut('api', () => installation.kubectl('rollout', 'restart', 'deployment/api'));
  });
  expect(failuresOf(loads)).toEqual([]);
});

test('SIGKILL of one of two pods of api: no request that is sent 2 s later or more fails', async () => {
  const [pod] = await installation.pods('api');
  let killedAtMs = 0;
  const loads = await installation.underLoad('SIGKILL of a pod of api', async () => {
    killedAtMs = await installation.sigkill(pod as Pod);
    await sleep(5000);
  });
  const failures = failuresOf(loads);
  const lastMs = failures.at(-1)?.sentAtMs ?? killedAtMs;
  print(`last failed request sent ${Math.round(lastMs - killedAtMs)} ms after the SIGKILL`);
  expect(lastMs - killedAtMs).toBeLessThan(2000);
  for (const { sentAtMs } of failures) expect(sentAtMs).toBeGreaterThan(killedAtMs - 2000);
});

test('1000 requests per second to one pod of each service: none fails, and memory stays below the limit', async () => {
  await installation.scale('api', 1);
  await sleep(8000);
  const pods = {
    api: (await installation.pods('api'))[0] as Pod,
    api2: (await installation.pods('api2'))[0] as Pod,
  };
  await installation.load.start('many', await installation.apiUrl('/hello'), 1000);
  await sleep(5000);
  const before = { api: await usage(pods.api), api2: await usage(pods.api2) };
  await sleep(15_000);
  const after = { api: await usage(pods.api), api2: await usage(pods.api2) };
  const load = await installation.load.stop('many');
  print(`sent ${load.sent}, failed ${load.failed}, slowest ${load.slowestMs} ms`);
  expect(failuresOf([load])).toEqual([]);
  for (const service of ['api', 'api2'] as const) {
    const [start, end] = [before[service], after[service]];
    const cores = (end.cpuSeconds - start.cpuSeconds) / ((end.atMs - start.atMs) / 1000);
    print(`${service}: ${Math.round(cores * 1000)}m CPU, ${Math.round(end.bytes / 2 ** 20)} MiB`);
    expect(end.bytes).toBeLessThan(256 * 2 ** 20);
  }
});

test('all pods that were replaced or scaled down have stopped by themselves, with exit code 0', async () => {
  const stops = await installation.stops();
  print(stops.map(({ code, lastLine }) => `${code ?? 'no exit code'} (${lastLine})`).join(', '));
  expect(stops.length).toBeGreaterThan(0);
  expect(stops.filter((stop) => !hasSucceeded(stop))).toEqual([]);
});

async function metric(pod: Pod, name: string) {
  const program = "fetch('http://127.0.0.1:9090/metrics').then(async (r) => console.log(await r.text()))";
  const exposition = await installation.exec(pod, program);
  const lines = new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, 'gm');
  return [...exposition.matchAll(lines)].reduce((sum, [, value]) => sum + Number(value), 0);
}

async function measureShares(pods: Pod[]) {
  const counts = () =>
    Promise.all(pods.map((pod) => metric(pod, 'http_server_request_duration_seconds_count')));
  const before = await counts();
  await sleep(1500);
  const differences = (await counts()).map((count, i) => count - (before[i] ?? 0));
  const total = differences.reduce((sum, count) => sum + count, 0);
  return differences.map((count) => count / total);
}

async function usage(pod: Pod) {
  const program = `
    fetch('http://127.0.0.1:9090/metrics').then(async (r) => console.log(Date.now() + '\\n' + await r.text()))`;
  const output = await installation.exec(pod, program);
  const value = (name: string) => Number(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, 'm').exec(output)?.[1]);
  return {
    atMs: Number(output.split('\n')[0]),
    cpuSeconds: value('process_cpu_seconds_total'),
    bytes: value('process_resident_memory_bytes'),
  };
}
