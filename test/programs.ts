import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

/** A service that runs as a separate process, as `npm run start:api` starts it. */
export interface Program {
  child: ChildProcess;
  port: number;
  adminPort: number;
  url: string;
  adminUrl: string;
  output: () => string;
  lines: () => Record<string, unknown>[];
  /** Sends a signal, and resolves to the exit code. */
  stop: (signal?: NodeJS.Signals) => Promise<number | null>;
}

export type Environment = Record<string, string | undefined>;

/** Starts the built service on free loopback ports, and resolves when it listens. */
export async function start(service: 'api' | 'api2', env: Environment = {}): Promise<Program> {
  const { child, output, exited } = spawnService(service, {
    HOST: '127.0.0.1',
    PORT: '0',
    ADMIN_PORT: '0',
    DATABASE_FILE: ':memory:',
    ...env,
  });
  const lines = () => parseLines(output());
  for (let i = 0; i < 3000 && !lines().some(({ msg }) => msg === 'listening'); i++) {
    if (child.exitCode !== null) throw new Error(`${service} exited: ${output()}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const { port, adminPort } = lines().find(({ msg }) => msg === 'listening') as {
    port: number;
    adminPort: number;
  };
  const stop = (signal: NodeJS.Signals = 'SIGTERM') => {
    child.kill(signal);
    return exited;
  };
  const url = `http://127.0.0.1:${port}`;
  return { child, port, adminPort, url, adminUrl: `http://127.0.0.1:${adminPort}`, output, lines, stop };
}

/** Returns a function that starts a service. Services that are still running after a test are killed. */
export function programStarter() {
  const running: Program[] = [];
  afterEach(async () => {
    for (const program of running.splice(0))
      if (program.child.exitCode === null) await program.stop('SIGKILL');
  });
  return async (service: 'api' | 'api2', env: Environment = {}) => {
    const program = await start(service, env);
    running.push(program);
    return program;
  };
}

/** Starts the built service, and resolves to its exit code and output when it has exited. */
export async function runUntilExit(service: 'api' | 'api2', env: Environment) {
  const { output, exited } = spawnService(service, env);
  return { code: await exited, output: output() };
}

function spawnService(service: string, env: Environment) {
  const child = spawn(process.execPath, [`dist/services/${service}/main.js`], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  const collect = (data: Buffer) => {
    text += data;
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  const exited = once(child, 'close').then(([code]) => code as number | null);
  return { child, output: () => text, exited };
}

function parseLines(output: string): Record<string, unknown>[] {
  const lines = output.split('\n').slice(0, -1);
  return lines.filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
}
