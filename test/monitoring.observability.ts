import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Dashboard, Panel } from '@grafana/schema';
import { request } from 'undici';
import { stringify } from 'yaml';
import { isolationTests } from './isolation';
import { LoadGenerator } from './load';
import { docker, Probe, Stack } from './stack';

const PROMETHEUS = 'http://127.0.0.1:18121';
const JAEGER = 'http://127.0.0.1:18122';
const REQUESTS_PER_SECOND = 50;
const RATE_INTERVAL = '10s';
// Each file is the real one with shorter times, so that an alert fires within seconds.
const SHORTENED = {
  'prometheus.yml': (text: string) => text.replace(/\b[45]s\b/g, '1s'),
  'alerts.yml': (text: string) =>
    text.replaceAll('[5m]', `[${RATE_INTERVAL}]`).replace(/for: \d+m/g, 'for: 2s'),
};
// Takes the place of Jaeger, and responds with the names of the services that sent spans.
const COLLECTOR = `
  const services = new Set();
  const listener = async (req, res) => {
    let text = '';
    for await (const chunk of req) text += chunk;
    for (const { resource } of req.method === 'POST' ? JSON.parse(text).resourceSpans : [])
      services.add(resource.attributes.find(({ key }) => key === 'service.name').value.stringValue);
    res.setHeader('content-type', 'application/json').end(JSON.stringify([...services]));
  };
  for (const port of [4318, 16686, 13133]) require('node:http').createServer(listener).listen(port);
`;
// On SIGUSR2, api allocates memory up to 232 MiB.
const LEAK =
  "data:text/javascript,process.on('SIGUSR2',()=>{const%20leak=globalThis.leak=[];while(process.memoryUsage.rss()<232*2**20)leak.push(Buffer.alloc(2**20,1))})";

const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
const override = join(folder, 'override.yml');
const stack = new Stack('onehop-observability', 18_120, {
  files: ['docker-compose.observability.yml', override],
  env: { ONEHOP_PROMETHEUS_PUBLISH: '127.0.0.1:18121', ONEHOP_JAEGER_PUBLISH: '127.0.0.1:18122' },
});
const probe = new Probe(stack);
const startedMs = Date.now();
let load: LoadGenerator;

beforeAll(async () => {
  await stack.requireEngine();
  for (const [name, shorten] of Object.entries(SHORTENED))
    writeFileSync(join(folder, name), shorten(readFileSync(`deploy/observability/${name}`, 'utf8')));
  writeFileSync(override, stringify(overrideFile()));
  await stack.down();
  await stack.compose(
    'up',
    '--build',
    '--detach',
    '--wait',
    '--scale',
    'api2=3',
    'api',
    'api2',
    'prometheus',
    'jaeger',
  );
  load = new LoadGenerator(new URL('/hello', stack.url), REQUESTS_PER_SECOND);
}, 300_000);

afterAll(async () => {
  await load?.stop();
  await stack.down();
  rmSync(folder, { recursive: true });
}, 60_000);

function overrideFile() {
  return {
    services: {
      api: { environment: { NODE_OPTIONS: `--import=${LEAK}` } },
      prometheus: {
        volumes: Object.keys(SHORTENED).map((name) => `${join(folder, name)}:/etc/prometheus/${name}:ro`),
      },
      jaeger: {
        image: 'gcr.io/distroless/nodejs24-debian13:nonroot',
        command: ['-e', COLLECTOR],
        healthcheck: {
          test: [
            'CMD',
            '/nodejs/bin/node',
            '-e',
            "fetch('http://127.0.0.1:13133').catch(() => process.exit(1))",
          ],
        },
      },
    },
  };
}

async function query<T>(path: string, parameters: Record<string, string> = {}): Promise<T> {
  const url = new URL(`/api/v1/${path}`, PROMETHEUS);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  const { body } = await request(url);
  const { status, data, error } = (await body.json()) as { status: string; data: T; error?: string };
  if (status !== 'success') throw new Error(`${url}: ${error}`);
  return data;
}

async function firingAlerts() {
  interface Alert {
    state: 'pending' | 'firing';
    labels: Record<string, string>;
  }
  const { alerts } = await query<{ alerts: Alert[] }>('alerts');
  return alerts.filter(({ state }) => state === 'firing').map(({ labels }) => labels);
}

/** Resolves when the alert fires with these labels. */
async function firing(name: string, expected: Record<string, string> = {}) {
  let found: Record<string, string> | undefined;
  await until(`${name} fires`, async () => {
    found = (await firingAlerts()).find(
      (labels) =>
        labels.alertname === name && Object.entries(expected).every(([key, value]) => labels[key] === value),
    );
    return found !== undefined;
  });
}

async function until(what: string, condition: () => Promise<boolean>) {
  const deadlineMs = performance.now() + 40_000;
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`${what}: not within 40 s`);
    await sleep(200);
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Resolves when no alert has fired for 5 s. On a busy machine, one may fire for a moment. */
async function silence() {
  let quietSinceMs = performance.now();
  await until('no alert fires for 5 s', async () => {
    if ((await firingAlerts()).length > 0) quietSinceMs = performance.now();
    return performance.now() - quietSinceMs > 5000;
  });
}

/** Sets the same fault in all replicas of api2. */
async function fault(...args: string[]) {
  for (const container of await stack.containers('api2')) await setFault(container, ...args);
}

const setFault = (container: string, ...args: string[]) =>
  docker('exec', container, '/nodejs/bin/node', 'services/api2/fault-command.js', ...args);

test('each replica is a target of its own, in the job of its service', async () => {
  const jobsUp = async () => {
    const { activeTargets } = await query<{ activeTargets: { health: string; labels: { job: string } }[] }>(
      'targets',
    );
    return activeTargets.filter(({ health }) => health === 'up').map(({ labels }) => labels.job);
  };
  await until('all targets are up', async () => (await jobsUp()).length === 4);
  expect((await jobsUp()).sort()).toEqual(['api', 'api2', 'api2', 'api2']);
}, 60_000);

test('no alert fires while all is well', silence, 60_000);

describe('isolation', () => {
  isolationTests(stack);

  test('api2 can connect to the collector and to neither Prometheus nor the network of the dashboards', async () => {
    const [api2] = await stack.containers('api2');
    const [prometheus] = await stack.containers('prometheus');
    const [jaeger] = await stack.containers('jaeger');
    const urls = [
      'http://jaeger:4318',
      `http://${await probe.address(prometheus, 'internal')}:9090/-/ready`,
      `http://${await probe.address(prometheus, 'dashboards')}:9090/-/ready`,
      `http://${await probe.address(jaeger, 'dashboards')}:4318`,
    ];
    const expected = [200, 'unreachable', 'unreachable', 'unreachable'];
    expect(await probe.fromContainer(api2, urls)).toEqual(expected);
  }, 60_000);

  test('a container on the network of the dashboards, such as Grafana, can reach Prometheus, but neither service', async () => {
    const [api] = await stack.containers('api');
    const [api2] = await stack.containers('api2');
    const urls = [
      'http://prometheus:9090/-/ready',
      `http://${await probe.address(api2, 'internal')}:8080/respond`,
      `http://${await probe.address(api2, 'internal')}:9090/metrics`,
      `http://${await probe.address(api, 'internal')}:9090/metrics`,
      `http://${await probe.address(api, 'public')}:9090/metrics`,
    ];
    const [first, ...others] = await probe.fromNetwork('dashboards', urls);
    expect(first).toBe(200);
    expect(new Set(others)).toEqual(new Set(['unreachable']));
  }, 60_000);
});

test('hedges win while one replica of api2 responds late', async () => {
  const [late] = await stack.containers('api2');
  await setFault(String(late), 'delay', 'delayMs=800');
  try {
    await until('a hedge wins', async () => {
      const { result } = await query<{ result: unknown[] }>('query', {
        query: `rate(http_client_hedges_won_total[${RATE_INTERVAL}]) > 0`,
      });
      return result.length > 0;
    });
  } finally {
    await fault('off');
  }
}, 60_000);

describe('alerts', () => {
  afterEach(() => fault('off').catch(() => {}));

  test('ManyRequestsRepeated fires when api2 resets a fifth of the connections', async () => {
    await fault('reset', 'rate=0.2');
    await firing('ManyRequestsRepeated', { next_hop: 'api2' });
  }, 60_000);

  test('RouteSlow fires when api2 responds late', async () => {
    await fault('delay', 'delayMs=800');
    await firing('RouteSlow', { route: '/hello' });
  }, 60_000);

  test('ApiFails, NextHopFails and CircuitOpen fire when api2 resets all connections', async () => {
    await fault('reset');
    await firing('ApiFails');
    await firing('NextHopFails', { next_hop: 'api2', error: 'connection_terminated' });
    await firing('NextHopFails', { next_hop: 'api2', error: 'destination_unavailable' });
    await firing('CircuitOpen', { next_hop: 'api2' });
  }, 90_000);

  test('TooManyRequestsInFlight fires when 850 clients do not finish their requests', async () => {
    const clients = Array.from({ length: 850 }, unfinishedRequest);
    await firing('TooManyRequestsInFlight', { job: 'api' });
    for (const client of clients) client.destroy();
  }, 60_000);

  test('MemoryHigh fires when api leaks memory', async () => {
    const [api] = await stack.containers('api');
    await docker('kill', '--signal', 'SIGUSR2', String(api));
    await firing('MemoryHigh', { job: 'api' });
    expect(await docker('inspect', '--format', '{{.RestartCount}}', String(api))).toBe('0');
    await docker('restart', String(api));
  }, 60_000);

  test('MetricsMissing fires when no replica of api2 runs', async () => {
    await stack.compose('stop', 'api2');
    await firing('MetricsMissing', { job: 'api2' });
    await stack.compose('up', '--detach', '--wait', '--no-recreate', '--scale', 'api2=3', 'api2');
  }, 90_000);

  test('all alerts end when all is well again', silence, 60_000);
});

function unfinishedRequest(): Socket {
  const { hostname, port } = new URL(stack.url);
  const socket = connect(Number(port), hostname);
  socket.on('error', () => {});
  socket.write(
    'POST /books HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{',
  );
  return socket;
}

test('both services send their traces to the collector', async () => {
  const { body } = await request(JAEGER);
  expect(((await body.json()) as string[]).sort()).toEqual(['api', 'api2']);
});

describe('the dashboard', () => {
  const {
    panels = [],
    annotations,
    templating,
  }: Dashboard = JSON.parse(readFileSync('deploy/observability/grafana/dashboards/onehop.json', 'utf8'));
  const rows: [string, string][] = [
    ...panels.flatMap((panel): [string, unknown][] =>
      ((panel as Panel).targets ?? []).map(({ refId, expr }) => [
        `${panel.id} ${panel.title} ${refId}`,
        expr,
      ]),
    ),
    ...(annotations?.list ?? []).map(({ name, target }): [string, unknown] => [
      `annotation ${name}`,
      (target as { expr?: unknown } | undefined)?.expr,
    ]),
  ].filter((row): row is [string, string] => typeof row[1] === 'string');

  test.each(rows)('the query of %s returned data during the faults', async (_name, expression) => {
    const seconds = (ms: number) => String(Math.floor(ms / 1000));
    const { result } = await query<{ result: { values: [number, string][] }[] }>('query_range', {
      query: expression.replaceAll('$__rate_interval', RATE_INTERVAL).replaceAll('$replica', '.*'),
      start: seconds(startedMs),
      end: seconds(Date.now()),
      step: '2',
    });
    const values = result.flatMap((series) => series.values.map(([, value]) => Number(value)));
    expect(Math.max(...values.filter((value) => !Number.isNaN(value)))).toBeGreaterThan(0);
  });

  test('the variable replica offers every replica', async () => {
    const variable = templating?.list?.find(({ name }) => name === 'replica');
    const [, selector, label] = /^label_values\((.+), (\w+)\)$/.exec(String(variable?.query)) ?? [];
    const replicas = await query<string[]>(`label/${label}/values`, { 'match[]': String(selector) });
    expect(replicas.length).toBeGreaterThanOrEqual(4);
  });
});
