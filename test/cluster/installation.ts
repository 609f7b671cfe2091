import { setTimeout as sleep } from 'node:timers/promises';
import {
  create,
  createNamespace,
  followLog,
  hold,
  IMAGE_TAG,
  kubectl,
  release,
  removeNamespace,
  type ServiceName,
  TOOLS_NAMESPACE,
} from './cluster';
import { LoadPod, type LoadSummary } from './load-pod';

const NODE = '/nodejs/bin/node';
const KEPT_PER_SECOND = 300;
const NEW_PER_SECOND = 50;
const POSTS_PER_SECOND = 50;
const MAX_PRINTED_FAILURES = 5;

export interface Pod {
  name: string;
  uid: string;
  node: string;
}

/** A namespace of the tests. It is created empty, and `remove` deletes it. */
export class Installation {
  private readonly stopped: { pod: string; lastLine: string }[] = [];
  private url = '';

  private constructor(
    readonly namespace: string,
    readonly load: LoadPod,
  ) {}

  static async create(namespace: string) {
    await createNamespace(namespace, 'restricted');
    return new Installation(namespace, await LoadPod.connect());
  }

  async remove() {
    this.load.close();
    await removeNamespace(this.namespace);
  }

  kubectl(...args: string[]) {
    return kubectl('-n', this.namespace, ...args);
  }

  /** The URL of a path of api, at the address of its Service. */
  async apiUrl(path: string) {
    if (this.url === '') {
      const address = await this.kubectl('get', 'service', 'api', '-o', 'jsonpath={.spec.clusterIP}');
      this.url = `http://${address.includes(':') ? `[${address}]` : address}`;
    }
    return `${this.url}${path}`;
  }

  async hello() {
    return this.load.request(await this.apiUrl('/hello'));
  }

  async waitUntilAvailable() {
    await this.kubectl('wait', '--for=condition=Available', 'deployment', '--all', '--timeout=120s');
  }

  /** The pods of a service that are not terminating, oldest first. */
  async pods(service: ServiceName): Promise<Pod[]> {
    const selector = `app.kubernetes.io/name=${service}`;
    const output = await this.kubectl('get', 'pods', '-l', selector, '-o', 'json');
    interface Item {
      metadata: { name: string; uid: string; creationTimestamp: string; deletionTimestamp?: string };
      spec: { nodeName: string };
    }
    return (JSON.parse(output).items as Item[])
      .filter(({ metadata }) => metadata.deletionTimestamp === undefined)
      .sort((a, b) => a.metadata.creationTimestamp.localeCompare(b.metadata.creationTimestamp))
      .map(({ metadata: { name, uid }, spec }) => ({ name, uid, node: spec.nodeName }));
  }

  /** Changes a service, and waits until its new pods are available and its previous ones have drained and stopped. */
  async rollOut(service: ServiceName, change: () => Promise<unknown>) {
    await this.untilStopped(service, async () => {
      await change();
      await this.kubectl('rollout', 'status', `deployment/${service}`, '--timeout=120s');
    });
  }

  /** Runs `change`, and waits until the pods of a service that it removes have stopped. `stops` returns how. */
  async untilStopped(service: ServiceName, change: () => Promise<unknown>) {
    const before = (await this.pods(service)).map(({ name }) => name);
    await hold(this.namespace, before);
    // Kubernetes may delete a log as soon as the container has stopped, so start to follow it before the change.
    const logs = await Promise.all(before.map((pod) => followLog(this.namespace, pod)));
    try {
      await change();
      const left = (await this.pods(service)).map(({ name }) => name);
      await release(this.namespace, left);
      for (const { pod, lastLine } of logs.filter(({ pod }) => !left.includes(pod))) {
        const { level, msg } = JSON.parse(await lastLine);
        this.stopped.push({ pod, lastLine: `${level}: ${msg}` });
      }
    } finally {
      for (const log of logs) log.stop();
    }
  }

  /**
   * The last log lines of the pods that `untilStopped` waited for, and their exit codes. Kubernetes 1.20 loses some of
   * both, so either of them is enough.
   */
  stops() {
    const format = 'jsonpath={.status.containerStatuses[*].state.terminated.exitCode}';
    return Promise.all(
      this.stopped.map(async ({ pod, lastLine }) => {
        const code = await this.kubectl('get', 'pod', pod, '-o', format);
        return { lastLine, code: code === '' ? undefined : Number(code) };
      }),
    );
  }

  async scale(service: ServiceName, replicas: number) {
    await this.kubectl('scale', `deployment/${service}`, `--replicas=${replicas}`);
    await this.kubectl('rollout', 'status', `deployment/${service}`, '--timeout=120s');
    // The status of the Deployment may change before the surplus pods are deleted.
    while ((await this.pods(service)).length !== replicas) await sleep(200);
  }

  /** Sends SIGKILL to the service in a pod, and resolves to the time at which it did so, in milliseconds since 1970. */
  async sigkill({ name, uid, node }: Pod) {
    // A process cannot kill PID 1 of its own PID namespace, so a pod in the PID namespace of the node does.
    // Depending on the cgroup driver, the uid in the name of a cgroup has underscores instead of hyphens.
    const program = `
      const { readdirSync, readFileSync } = require('node:fs');
      for (const id of readdirSync('/proc').filter((entry) => /^[0-9]+$/.test(entry))) {
        const read = (file) => { try { return readFileSync('/proc/' + id + '/' + file, 'utf8'); } catch { return ''; } };
        if (!read('cgroup').replaceAll('_', '-').includes('${uid}') || !read('cmdline').includes('main.js')) continue;
        console.log(Date.now());
        process.kill(Number(id), 'SIGKILL');
      }`;
    const killer = `kill-${name}`;
    await create({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: killer, namespace: TOOLS_NAMESPACE },
      spec: {
        hostPID: true,
        nodeName: node,
        restartPolicy: 'Never',
        containers: [
          {
            name: 'kill',
            image: `onehop-api:${IMAGE_TAG}`,
            args: ['-e', program],
            securityContext: { privileged: true, runAsUser: 0 },
          },
        ],
      },
    });
    const done = '--for=jsonpath={.status.phase}=Succeeded';
    await kubectl('-n', TOOLS_NAMESPACE, 'wait', done, `pod/${killer}`, '--timeout=60s');
    const killedAtMs = Number(await kubectl('-n', TOOLS_NAMESPACE, 'logs', killer));
    if (!(killedAtMs > 0)) throw new Error(`the process of ${name} was not found`);
    return killedAtMs;
  }

  /** Runs a program with Node in a pod, and resolves to its output. */
  exec(pod: Pod, program: string) {
    return this.kubectl('exec', pod.name, '--', NODE, '-e', program);
  }

  /**
   * Runs `disturb` under load: GET requests over kept connections (to `path`) and over new ones, and POSTs of books if
   * they have a prefix. Prints a summary and the first failures of each load, and resolves to the summaries in this
   * order.
   */
  async underLoad(
    title: string,
    disturb: () => Promise<unknown>,
    { path = '/hello', bookPrefix }: { path?: string; bookPrefix?: string } = {},
  ) {
    const loads = ['kept', 'new', ...(bookPrefix === undefined ? [] : ['posts'])];
    await this.load.start('kept', await this.apiUrl(path), KEPT_PER_SECOND);
    await this.load.start('new', await this.apiUrl('/hello'), NEW_PER_SECOND, { opensConnections: true });
    if (bookPrefix !== undefined)
      await this.load.start('posts', await this.apiUrl('/books'), POSTS_PER_SECOND, { bookPrefix });
    let summaries: LoadSummary[] = [];
    try {
      await sleep(1000);
      await disturb();
      await sleep(1000);
    } finally {
      summaries = await Promise.all(loads.map((name) => this.load.stop(name)));
      for (const [i, summary] of summaries.entries()) {
        const { sent, failed, slowestMs } = summary;
        process.stdout.write(
          `${title}: ${loads[i]}: sent ${sent}, failed ${failed}, slowest ${slowestMs} ms\n`,
        );
        for (const failure of failuresOf([summary]).slice(0, MAX_PRINTED_FAILURES))
          process.stdout.write(`  ${JSON.stringify(failure)}\n`);
      }
    }
    return summaries;
  }

  /** The titles of all books that start with a prefix. */
  async titles(prefix: string) {
    const titles: string[] = [];
    let path: string | null = '/books?limit=100';
    while (path !== null) {
      const { text } = await this.load.request(await this.apiUrl(path));
      const { items, next } = JSON.parse(text) as { items: { title: string }[]; next: string | null };
      titles.push(...items.map(({ title }) => title));
      path = next === null ? null : `/books?limit=100&after=${next}`;
    }
    return titles.filter((title) => title.startsWith(prefix));
  }
}

/** The requests of loads that did not get the expected response. */
export function failuresOf(summaries: LoadSummary[]) {
  return summaries
    .flatMap(({ samples }) => samples)
    .filter(({ status }) => status !== 200 && status !== 201)
    .sort((a, b) => a.sentAtMs - b.sentAtMs);
}

/** Whether a pod stopped with exit code 0: a service logs `stopped` as `info` only then, as its last line. */
export function hasSucceeded({ code, lastLine }: { code: number | undefined; lastLine: string }) {
  return code === undefined ? lastLine === 'info: stopped' : code === 0;
}
