import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A compose stack for tests, under its own project name so that it does not touch a running stack of the user. */
export class Stack {
  readonly url: string;

  constructor(
    private readonly project: string,
    private readonly port: number,
  ) {
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Runs `docker compose`, and resolves to its output. */
  async compose(...args: string[]) {
    const env = { ...process.env, ONEHOP_PUBLISH: `127.0.0.1:${this.port}` };
    const { stdout } = await run('docker', ['compose', '-p', this.project, ...args], {
      env,
      maxBuffer: 2 ** 28,
    });
    return stdout.trim();
  }

  /** @throws {Error} if no Docker engine is running */
  async requireEngine() {
    await docker('info').catch((cause: unknown) => {
      throw new Error('This test needs a running Docker engine. Run `docker info` for details.', {
        cause,
      });
    });
  }

  async down() {
    await this.compose('down', '--volumes', '--timeout', '15');
  }

  /** The names of a service's containers, stopped ones included, in order of their number. */
  async containers(service: string) {
    const names = await this.compose('ps', '--all', '--format', '{{.Name}}', service);
    return names.split('\n').filter(Boolean).sort();
  }
}

/** Runs `docker`, and resolves to its output. */
export async function docker(...args: string[]) {
  const { stdout } = await run('docker', args, { maxBuffer: 2 ** 28 });
  return stdout.trim();
}
