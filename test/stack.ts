import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A compose stack for tests, under its own project name so that it does not touch a running stack of the user. */
export class Stack {
  readonly url: string;

  /** @param options further compose files after docker-compose.yml, and variables that they use */
  constructor(
    readonly project: string,
    private readonly port: number,
    private readonly options: { files?: string[]; env?: Record<string, string> } = {},
  ) {
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Runs `docker compose`, and resolves to its output. */
  async compose(...args: string[]) {
    const env = { ...process.env, ONEHOP_PUBLISH: `127.0.0.1:${this.port}`, ...this.options.env };
    const files = ['docker-compose.yml', ...(this.options.files ?? [])].flatMap((file) => ['-f', file]);
    const { stdout } = await run('docker', ['compose', '-p', this.project, ...files, ...args], {
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

/** Requests URLs from inside the stack. The results are the statuses, or `unreachable`. */
export class Probe {
  constructor(private readonly stack: Stack) {}

  /** From a new container on a network. */
  fromNetwork(network: string, urls: string[]) {
    const { project } = this.stack;
    return this.run(['run', '--rm', '--network', `${project}_${network}`, `${project}-api`], urls);
  }

  fromContainer(container: string | undefined, urls: string[]) {
    return this.run(['exec', String(container), '/nodejs/bin/node'], urls);
  }

  /** The address of a container on one of the networks of the stack. */
  address(container: string | undefined, network: string) {
    const format = `{{(index .NetworkSettings.Networks "${this.stack.project}_${network}").IPAddress}}`;
    return docker('inspect', '--format', format, String(container));
  }

  private async run(command: string[], urls: string[]) {
    const program = `
      const status = (url) => fetch(url, { signal: AbortSignal.timeout(2000) }).then((r) => r.status, () => 'unreachable');
      Promise.all(${JSON.stringify(urls)}.map(status)).then((all) => console.log(JSON.stringify(all)));`;
    return JSON.parse(await docker(...command, '-e', program)) as (number | 'unreachable')[];
  }
}

/** Runs `docker`, and resolves to its output. */
export async function docker(...args: string[]) {
  const { stdout } = await run('docker', args, { maxBuffer: 2 ** 28 });
  return stdout.trim();
}
