import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);
const DEFAULT_URL = 'http://127.0.0.1:8080';
const DEFAULT_ADMIN_URL = 'http://127.0.0.1:9090';
const DEFAULT_LOG = 'onehop.log';
const START_TIMEOUT_MS = 10_000;
const LOG_TIMEOUT_MS = 2000;

/** The services that the tour walks through. */
export interface Services {
  description: string;
  /** The origin of api. */
  url: string;
  hasDocker: boolean;
  /** Resolves to the metrics of api. */
  metrics: () => Promise<string>;
  /** Resolves to the latest lines of the logs of both services. */
  log: () => Promise<string>;
  /** Stops what the tour has started, and restores what it has changed. */
  restore: () => Promise<void>;
}

export interface Options {
  start?: boolean | undefined;
  url?: string | undefined;
  'admin-url'?: string | undefined;
  log?: string | undefined;
}

export type LogLine = Record<string, unknown>;

/** The log lines of both services for a request. */
export async function logLinesOf({ log }: Services, requestId: string): Promise<LogLine[]> {
  const lines = (await log()).split('\n').filter((line) => line.includes(`"requestId":"${requestId}"`));
  // Compose puts control characters before each line.
  const parsed = lines.map((line) => JSON.parse(line.slice(line.indexOf('{'))) as LogLine);
  return parsed.filter(({ msg }) => msg === 'request completed');
}

/** A problem that the user can solve. */
export class TourError extends Error {}

/**
 * Finds the services: those of `npm start`, if `--url` or `--log` names them; those of Docker Compose; those of
 * `npm start` at the default ports. If there are none that the tour can use, it starts two of its own.
 * @throws {TourError} if the services that the user has named cannot be used
 */
export async function findServices(options: Options): Promise<Services> {
  if (options.start) return startServices('');
  const { url = DEFAULT_URL, 'admin-url': adminUrl = DEFAULT_ADMIN_URL, log = DEFAULT_LOG } = options;
  const running = runningServices(url, adminUrl, log);
  if (options.url ?? options['admin-url'] ?? options.log) {
    const problem = await findProblem(running);
    if (problem !== undefined) throw new TourError(`${problem}.`);
    return running;
  }
  const docker = await dockerServices();
  if (docker !== undefined) {
    const problem = await findProblem(docker);
    if (problem !== undefined) throw new TourError(`${problem}.`);
    return docker;
  }
  const problem = await findProblem(running);
  return problem === undefined ? running : startServices(problem);
}

/** Returns why the tour cannot use the services, or undefined. */
async function findProblem(services: Services) {
  const { url, hasDocker, metrics } = services;
  const requestId = `tour-check-${process.pid}`;
  // This value is invalid, so api responds with 400, unless it ignores the header.
  const headers = { 'x-fault': 'none', 'x-request-id': requestId };
  const response = await fetch(`${url}/hello`, { headers }).catch(() => undefined);
  if (response === undefined) return `api does not respond at ${url}`;
  const restart = `FAULTS=on npm start | tee ${DEFAULT_LOG}`;
  if (response.status !== 400)
    return `api at ${url} runs without fault injection: start it with \`${hasDocker ? 'docker compose up' : restart}\``;
  if (!(await metrics().catch(() => '')).includes('http_client_circuit_state'))
    return 'api does not serve its metrics on its admin port';
  for (const deadline = Date.now() + LOG_TIMEOUT_MS; Date.now() < deadline; await sleep(100))
    if ((await logLinesOf(services, requestId).catch(() => [])).length > 0) return undefined;
  return `the tour cannot read the log of api at ${url}: start it with \`${hasDocker ? 'docker compose up' : restart}\``;
}

function runningServices(url: string, adminUrl: string, logFile: string): Services {
  return {
    description: `the running services at ${url}, with their log in ${logFile}`,
    url,
    hasDocker: false,
    metrics: () => getText(`${adminUrl}/metrics`),
    log: () => readFile(logFile, 'utf8'),
    restore: async () => {},
  };
}

/** The services of the project in this folder that `docker compose up` has started, or undefined. */
async function dockerServices(): Promise<Services | undefined> {
  const published = await compose('port', 'api', '8080').catch(() => '');
  if (published === '') return undefined;
  const program = "fetch('http://127.0.0.1:9090/metrics').then(async (r) => console.log(await r.text()))";
  const replicas = async () => (await compose('ps', '--all', '--quiet', 'api2')).split('\n').filter(Boolean);
  const initialReplicas = (await replicas()).length;
  return {
    description: `the services of Docker Compose at http://${published}`,
    url: `http://${published}`,
    hasDocker: true,
    metrics: () => compose('exec', '-T', 'api', '/nodejs/bin/node', '-e', program),
    log: () => compose('logs', '--no-log-prefix', '--no-color', '--since', '1m', 'api', 'api2'),
    restore: async () => {
      const ids = await replicas();
      for (const id of ids) await run('docker', ['unpause', id]).catch(() => {});
      if (ids.length > initialReplicas)
        await compose('up', '--detach', '--no-recreate', '--scale', `api2=${initialReplicas}`);
    },
  };
}

/** Starts both built services on free ports, with books that exist only in memory. */
async function startServices(reason: string): Promise<Services> {
  if (!existsSync('dist/services/api/main.js')) {
    process.stdout.write('Building the services…\n');
    await run('npm', ['run', '-s', 'build']);
  }
  const children: ChildProcess[] = [];
  let log = '';
  const start = async (service: string, env: Record<string, string>) => {
    const child = spawn(process.execPath, [`dist/services/${service}/main.js`], {
      env: { ...process.env, ...OWN_SETTINGS, ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    children.push(child);
    let output = '';
    child.stdout.on('data', (data: Buffer) => {
      output += data;
      log += data;
    });
    for (const deadline = Date.now() + START_TIMEOUT_MS; child.exitCode === null; await sleep(20)) {
      const [, ports] = /^(\{.*"msg":"listening"\})$/m.exec(output) ?? [];
      if (ports !== undefined) return JSON.parse(ports) as { port: number; adminPort: number };
      if (Date.now() > deadline) break;
    }
    throw new TourError(`${service} did not start.`);
  };
  const restore = async () => {
    const running = children.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null);
    for (const child of running) child.kill();
    await Promise.all(running.map((child) => once(child, 'exit')));
  };
  process.once('exit', () => {
    for (const child of children) child.kill();
  });
  try {
    const api2 = await start('api2', {});
    const api = await start('api', { API2_URL: `http://127.0.0.1:${api2.port}` });
    const { url, metrics } = runningServices(
      `http://127.0.0.1:${api.port}`,
      `http://127.0.0.1:${api.adminPort}`,
      '',
    );
    const because = reason && ` (${reason})`;
    const description = `two services that it has started itself${because}`;
    return { description, url, hasDocker: false, metrics, log: async () => log, restore };
  } catch (error) {
    await restore();
    throw error;
  }
}

const OWN_SETTINGS = {
  HOST: '127.0.0.1',
  PORT: '0',
  ADMIN_PORT: '0',
  LOG_LEVEL: 'info',
  LOG_FORMAT: 'json',
  FAULTS: 'on',
  DATABASE_FILE: ':memory:',
  DATABASE_URL: '',
};

async function compose(...args: string[]) {
  const { stdout } = await run('docker', ['compose', ...args], { maxBuffer: 2 ** 28 });
  return stdout.trim();
}

async function getText(url: string) {
  return (await fetch(url)).text();
}
