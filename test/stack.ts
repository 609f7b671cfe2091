import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A compose stack of its own, beside one that the user may have up. */
export class Stack {
  readonly url: string;

  constructor(
    private readonly project: string,
    private readonly port: number,
  ) {
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Runs `docker compose`, and resolves to what it printed. */
  async compose(...args: string[]) {
    const env = { ...process.env, ONEHOP_PUBLISH: `127.0.0.1:${this.port}` };
    const { stdout } = await run('docker', ['compose', '-p', this.project, ...args], {
      env,
      maxBuffer: 2 ** 28,
    });
    return stdout.trim();
  }

  /** @throws {Error} that says how to mend it, when there is no engine */
  async requireEngine() {
    await docker('info').catch((cause: unknown) => {
      throw new Error('This test needs a running Docker engine; `docker info` tells what is wrong.', {
        cause,
      });
    });
  }

  async down() {
    await this.compose('down', '--volumes', '--timeout', '15');
  }

  /** The ids of a service's containers, stopped ones too, in order of their number. */
  async containers(service: string) {
    const listed = await this.compose('ps', '--all', '--format', '{{.Name}}', service);
    return listed.split('\n').filter(Boolean).sort();
  }
}

/** Runs `docker`, and resolves to what it printed. */
export async function docker(...args: string[]) {
  const { stdout } = await run('docker', args, { maxBuffer: 2 ** 28 });
  return stdout.trim();
}
