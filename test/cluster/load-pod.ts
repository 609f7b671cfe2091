import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import ts from 'typescript';
import { request } from 'undici';
import type { LoadGenerator, LoadOptions, Sample } from '../load';
import { create, IMAGE_TAG, kubectl, spawnKubectl, TOOLS_NAMESPACE } from './cluster';
import type { Commands } from './load-server';

export type LoadSummary = Awaited<ReturnType<LoadGenerator['stop']>> & { samples: Sample[] };

/** Creates the pod that sends the load: inside the cluster, requests reach the ClusterIP of a Service on any cluster. */
export async function createLoadPod() {
  const compile = (path: string) =>
    ts.transpileModule(readFileSync(path, 'utf8'), {
      compilerOptions: { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2023 },
    }).outputText;
  const metadata = { name: 'load', namespace: TOOLS_NAMESPACE };
  const items = [
    { key: 'load.js', path: 'load.js' },
    { key: 'load-server.js', path: 'cluster/load-server.js' },
  ];
  await create(
    {
      apiVersion: 'v1',
      kind: 'ConfigMap',
      metadata,
      data: { 'load.js': compile('test/load.ts'), 'load-server.js': compile('test/cluster/load-server.ts') },
    },
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata,
      spec: {
        volumes: [{ name: 'program', configMap: { name: 'load', items } }],
        containers: [
          {
            name: 'load',
            // The program uses undici, which the image contains.
            image: `onehop-api:${IMAGE_TAG}`,
            args: ['load/cluster/load-server.js'],
            volumeMounts: [{ name: 'program', mountPath: '/app/load' }],
            readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 },
          },
        ],
      },
    },
  );
  await kubectl('-n', TOOLS_NAMESPACE, 'wait', '--for=condition=Ready', 'pod/load', '--timeout=60s');
}

/** The pod of `createLoadPod`. */
export class LoadPod {
  private constructor(
    private readonly url: string,
    private readonly forward: ReturnType<typeof spawnKubectl>,
  ) {}

  static async connect() {
    const forward = spawnKubectl('-n', TOOLS_NAMESPACE, 'port-forward', 'pod/load', ':8080');
    const [line] = await once(createInterface(forward.stdout), 'line');
    forward.stdout.resume();
    const port = /127\.0\.0\.1:(\d+)/.exec(line)?.[1];
    if (port === undefined) throw new Error(`kubectl port-forward printed: ${line}`);
    return new LoadPod(`http://127.0.0.1:${port}`, forward);
  }

  close() {
    this.forward.kill();
  }

  async start(name: string, url: string, perSecond: number, options: LoadOptions = {}) {
    await this.command('start', { name, url, perSecond, options });
  }

  stop(name: string) {
    return this.command<LoadSummary>('stop', { name });
  }

  /** Sends one request. Rejects if there is no response. */
  request(url: string, { method = 'GET', headers = {}, ...rest }: Partial<Commands['request']> = {}) {
    const message = { url, method, headers, ...rest };
    return this.command<{ status: number; headers: Record<string, string>; text: string }>(
      'request',
      message,
    );
  }

  private async command<Result = unknown>(name: keyof Commands, parameters: object) {
    const { statusCode, body } = await request(`${this.url}/${name}`, {
      method: 'POST',
      body: JSON.stringify(parameters),
    });
    const result = (await body.json()) as { message?: string };
    if (statusCode !== 200) throw new Error(`${name}: ${result.message}`);
    return result as Result;
  }
}
