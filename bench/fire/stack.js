import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);
const PUBLISH = process.env.FIRE_PUBLISH ?? '127.0.0.1:18300';
const PROJECT = 'onehop-fire';
const NODE = '/nodejs/bin/node';
// USER_HZ of Linux: the unit of CPU time in /proc.
const TICK_MS = 10;

/** The URL of the caller. */
export const CALLER_URL = `http://${PUBLISH}/`;

/** Runs `docker`, and resolves to its output. */
export async function docker(...args) {
  const { stdout } = await run('docker', args, { maxBuffer: 2 ** 28 });
  return stdout.trim();
}

/** Runs `docker compose` for the stack, with the caller using `client`, and resolves to its output. */
export const compose = (client, ...args) => composeWith({ CLIENT: client }, ...args);

async function composeWith(variables, ...args) {
  const files = ['-f', 'docker-compose.yml', '-f', 'bench/fire/docker-compose.yml'];
  const { stdout } = await run('docker', ['compose', ...files, '-p', PROJECT, ...args], {
    cwd: new URL('../..', import.meta.url),
    env: { ...process.env, FIRE_PUBLISH: PUBLISH, ...variables },
    maxBuffer: 2 ** 28,
  });
  return stdout.trim();
}

export const down = () => compose('', 'down', '--volumes', '--remove-orphans', '--timeout', '1');

export const scale = (replicas) =>
  compose('', 'up', '--detach', '--wait', '--no-recreate', '--scale', `api2=${replicas}`, 'api2');

/** Names and states of a service's containers, stopped ones included, in order of their number. */
async function containers(service) {
  const lines = await compose('', 'ps', '--all', '--format', '{{.Name}} {{.State}} {{.Health}}', service);
  return lines
    .split('\n')
    .filter(Boolean)
    .sort()
    .map((line) => line.split(' '));
}

/** The names of the replicas of api2. */
export const replicas = async () => (await containers('api2')).map(([name]) => name);

/** Brings api2 to `count` healthy replicas without a fault, whatever the previous scenario left behind. */
export async function withReplicas(count) {
  const states = await containers('api2');
  const namesOf = (isIncluded) => states.filter(isIncluded).map(([name]) => name);
  const paused = namesOf(([, state]) => state === 'paused');
  if (paused.length > 0) await docker('unpause', ...paused);
  // Docker reports a container that was paused as unhealthy until its next health check, up to an hour later.
  const unhealthy = namesOf(([, state, health]) => state === 'paused' || health === 'unhealthy');
  if (unhealthy.length > 0) await docker('restart', ...unhealthy);
  const isReady =
    states.length === count &&
    states.every(([, state, health]) => state === 'running' && health === 'healthy');
  if (!isReady) await scale(count);
  await Promise.all((await replicas()).map((name) => fault(name, 'off')));
}

const frontServices = (client) => (client === 'haproxy' ? ['caller', 'haproxy'] : ['caller']);

/**
 * Starts a new caller, so that nothing that a client learned affects the next scenario.
 * @param countsSends whether it reports the books that it sends more than once, which takes CPU time
 */
export async function restartCaller(client, countsSends) {
  if (client !== 'haproxy') await compose(client, 'rm', '--stop', '--force', 'haproxy');
  const variables = { CLIENT: client, CALLER_NODE_OPTIONS: countsSends ? '--import=./count-sends.js' : '' };
  const services = frontServices(client);
  await composeWith(variables, 'up', '--detach', '--force-recreate', '--no-deps', ...services);
}

/** The number of books that the caller has sent more than once. */
export async function sentTwice() {
  const log = await docker('logs', `${PROJECT}-caller-1`);
  return log.split('\n').filter((line) => line.startsWith('sent twice: ')).length;
}

/** Sets the fault of a replica, as services/api2/fault-command.ts describes it. */
export const fault = (name, ...args) => docker('exec', name, NODE, 'services/api2/fault-command.js', ...args);

/**
 * Resolves to a function that sets the fault of a replica. The process that sets it is started in advance, because
 * starting Node uses enough CPU time to delay requests.
 */
export async function prepareFault(name, ...args) {
  const program = `require('undici');
    process.stdin.once('data', () => require('./services/api2/fault-command.js'));
    console.log('ready');`;
  // The arguments of the command start at `process.argv[2]`, after its name.
  const command = ['exec', '--interactive', name, NODE, '--eval', program, 'fault-command', ...args];
  const child = spawn('docker', command, { stdio: ['pipe', 'pipe', 'inherit'] });
  const description = `The process that sets the fault of ${name}`;
  const ended = once(child, 'close').then(([code]) => code);
  const ready = once(child.stdout, 'data');
  const code = await Promise.race([ended, ready]);
  if (typeof code === 'number')
    throw new Error(`${description} exited with code ${code} before it was ready.`);
  // If the process has ended, writing to it fails; its exit code is reported below.
  child.stdin.on('error', () => {});
  return async () => {
    child.stdin.end('set');
    const exitCode = await ended;
    if (exitCode !== 0) throw new Error(`${description} exited with code ${exitCode}.`);
  };
}

/** Starts stopped replicas, and resolves when they are healthy. */
export async function start(...names) {
  await docker('start', ...names);
  for (const name of names)
    while ((await docker('inspect', '--format', '{{.State.Health.Status}}', name)) !== 'healthy')
      await sleep(100);
}

/** The log lines of a replica since `sinceMs`. */
export async function logLines(name, sinceMs) {
  const text = await docker('logs', '--since', new Date(sinceMs).toISOString(), name);
  return text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map(parseLine)
    .filter(Boolean);
}

function parseLine(line) {
  try {
    return JSON.parse(line);
  } catch {
    // A killed process can leave half a line.
    return undefined;
  }
}

/** The CPU time that the containers in front of api2 have used, in milliseconds. */
export async function cpuMs(client) {
  let ticks = 0;
  for (const service of frontServices(client)) {
    const program = 'cat /proc/[0-9]*/stat 2>/dev/null';
    const stats = await docker('exec', `${PROJECT}-${service}-1`, 'sh', '-c', program);
    for (const line of stats.split('\n')) {
      // utime and stime are the fields 14 and 15; field 2 is in parentheses and can contain spaces.
      const [user, system] = line
        .slice(line.lastIndexOf(')') + 2)
        .split(' ')
        .slice(11, 13);
      ticks += Number(user) + Number(system);
    }
  }
  return ticks * TICK_MS;
}

/** All titles of books that api2 has stored. */
export async function storedTitles() {
  const [name] = await replicas();
  const program = `(async () => {
    for (let after = ''; after !== null; ) {
      const { items, next } = await (await fetch('http://127.0.0.1:8080/books?limit=100' + after)).json();
      for (const { title } of items) console.log(title);
      after = next && '&after=' + next;
    }
  })()`;
  return (await docker('exec', name, NODE, '-e', program)).split('\n');
}
