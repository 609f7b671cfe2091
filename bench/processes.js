// Starts and measures the programs of the benchmarks. With two cores or more, the server runs on one core and
// everything else on another.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

export const SERVER_CORE = 0;
export const OTHER_CORE = 1;
export const isPinned = availableParallelism() >= 2 && isInstalled('taskset', '--version');

const running = new Set();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));

/** @param status the exit code of `command` with `option` if it is installed */
export function isInstalled(command, option, status = 0) {
  return spawnSync(command, [option], { stdio: 'ignore' }).status === status;
}

/** Runs a command on one core. */
export function start(core, command, args, { env = {}, stdout = 'pipe' } = {}) {
  const pinned = isPinned ? ['taskset', '-c', String(core), command, ...args] : [command, ...args];
  const child = spawn(pinned[0], pinned.slice(1), {
    env: { ...process.env, ...env },
    stdio: ['ignore', stdout, 'inherit'],
  });
  running.add(child);
  child.once('exit', () => running.delete(child));
  return child;
}

/** Runs a program with this Node on one core. */
export function startNode(core, args, options) {
  return start(core, process.execPath, args, options);
}

/** Starts an HTTP server on `core` and discards its log. Does not wait until it is ready. */
export function startServer(program, port, env = {}, core = SERVER_CORE) {
  const own = { HOST: '127.0.0.1', PORT: String(port), ADMIN_PORT: String(port + 1) };
  const child = startNode(core, [program], { env: { ...own, ...env } });
  child.stdout.resume();
  return child;
}

/** This process reads the logs of the servers, so it must not run on their core. */
export function moveToOtherCore() {
  if (isPinned)
    execFileSync('taskset', ['-acp', String(OTHER_CORE), String(process.pid)], { stdio: 'ignore' });
}

/** @throws {Error} if there is no response within 30 s */
export async function waitUntilReady(url) {
  for (const endMs = performance.now() + 30_000; performance.now() < endMs; await sleep(2)) {
    try {
      const response = await fetch(url, { signal: AbortSignal.timeout(1000) });
      await response.arrayBuffer();
      if (response.ok) return;
    } catch {
      // The server does not listen yet.
    }
  }
  throw new Error(`${url} was not ready within 30 s`);
}

export async function kill(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await exited;
}

/** The output of a program that ends by itself. */
export async function outputOf(child) {
  let text = '';
  for await (const data of child.stdout) text += data;
  return text;
}

/** @param field `VmRSS` for the memory in use, `VmHWM` for its maximum */
export function memoryMiB(pid, field) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)[1]) / 1024;
}

export function median(values) {
  return quantile(values, 0.5);
}

/** The limits of the middle half of `values`. */
export function quartiles(values) {
  return [quantile(values, 0.25), quantile(values, 0.75)];
}

// Interpolates between the two nearest values.
function quantile(values, fraction) {
  const sorted = values.toSorted((a, b) => a - b);
  const position = (sorted.length - 1) * fraction;
  const low = sorted[Math.floor(position)];
  return low + (sorted[Math.ceil(position)] - low) * (position % 1);
}
