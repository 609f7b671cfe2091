import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** Marks the namespaces of the tests, so that a later run removes what an interrupted one has left. */
export const LABEL = 'app.kubernetes.io/managed-by=onehop-cluster-tests';
export const TOOLS_NAMESPACE = 'onehop-test-tools';
export const IMAGE_TAG = 'cluster-test';
export const SERVICES = ['api', 'api2'] as const;
export type ServiceName = (typeof SERVICES)[number];

const LOCAL_CLUSTER =
  /^(kind-.+|k3d-.+|minikube|docker-desktop|rancher-desktop|colima|orbstack|microk8s|stand-in)$/;

/** Why the tests must not run in a context, or undefined: by default they run only in contexts of local clusters. */
export function refusalOf(context: string, allowed: string | undefined): string | undefined {
  if (context === '')
    return 'The tests need a current kubectl context to run in: select one with `kubectl config use-context NAME`.';
  if (context === allowed || (allowed === undefined && LOCAL_CLUSTER.test(context) && !/prod/i.test(context)))
    return undefined;
  if (allowed !== undefined)
    return `The current kubectl context is ${context}, but CLUSTER_CONTEXT allows only ${allowed}.`;
  return `The tests create and delete namespaces and kill processes: to run them in the context ${context}, which is not known to be a local cluster, set CLUSTER_CONTEXT=${context}.`;
}

/**
 * The current context of the kubeconfig, or an empty string. Each call of kubectl names it, so that a change of the
 * current context does not redirect a run that has started.
 */
export const context = currentContext();

function currentContext(): string {
  try {
    const stdio = ['ignore', 'pipe', 'ignore'] as const;
    return execFileSync('kubectl', ['config', 'current-context'], {
      encoding: 'utf8',
      stdio: [...stdio],
    }).trim();
  } catch {
    return '';
  }
}

/** Runs `kubectl`, and resolves to its output. */
export async function kubectl(...args: string[]) {
  const { stdout } = await run('kubectl', ['--context', context, ...args], { maxBuffer: 2 ** 28 });
  return stdout.trim();
}

/** Creates objects. */
export async function create(...objects: object[]) {
  await send(['create'], { apiVersion: 'v1', kind: 'List', items: objects });
}

/** Asks for the eviction of a pod, as `kubectl drain` does. Rejects if a disruption budget does not allow it. */
export async function evict(namespace: string, pod: string) {
  const path = `/api/v1/namespaces/${namespace}/pods/${pod}/eviction`;
  const metadata = { name: pod, namespace };
  await send(['create', '--raw', path], { apiVersion: 'policy/v1', kind: 'Eviction', metadata });
}

async function send(args: string[], object: object) {
  const sent = run('kubectl', ['--context', context, ...args, '-f', '-']);
  sent.child.stdin?.end(JSON.stringify(object));
  await sent;
}

export function spawnKubectl(...args: string[]) {
  return spawn('kubectl', ['--context', context, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
}

/**
 * Follows the log of a pod, and resolves when its newest line has been read. `lastLine` resolves to the last line that
 * starts with `{` when the container has stopped or `stop` is called.
 */
export async function followLog(namespace: string, pod: string) {
  const child = spawnKubectl('-n', namespace, 'logs', pod, '--follow', '--tail=1');
  const lines = createInterface({ input: child.stdout });
  let last = '{}';
  // kubectl may append an error, because the container is gone.
  lines.on('line', (line) => {
    if (line.startsWith('{')) last = line;
  });
  const lastLine = once(lines, 'close').then(() => last);
  await Promise.race([once(lines, 'line'), lastLine]);
  return { pod, lastLine, stop: () => child.kill() };
}

/** Deletes all namespaces of the tests. */
export async function removeNamespaces() {
  const format = 'jsonpath={.items[*].metadata.name}';
  const names = (await kubectl('get', 'namespaces', '-l', LABEL, '-o', format)).split(' ').filter(Boolean);
  await Promise.all(names.map(removeNamespace));
}

/** Deletes a namespace, without waiting until its pods have drained. */
export async function removeNamespace(name: string) {
  const pods = await kubectl('-n', name, 'get', 'pods', '-o', 'jsonpath={.items[*].metadata.name}');
  await release(name, pods.split(' ').filter(Boolean));
  await kubectl('delete', 'namespace', name, '--wait=false');
  await kubectl('-n', name, 'delete', 'pods', '--all', '--grace-period=0', '--force', '--wait=false');
  await kubectl('wait', '--for=delete', `namespace/${name}`, '--timeout=150s');
}

/** Keeps pods after they have stopped, so that their exit codes can be read, until they are released. */
export const hold = (namespace: string, pods: string[]) =>
  setFinalizers(namespace, pods, ['onehop.test/exit-code']);
export const release = (namespace: string, pods: string[]) => setFinalizers(namespace, pods, null);

async function setFinalizers(namespace: string, pods: string[], finalizers: string[] | null) {
  const patch = JSON.stringify({ metadata: { finalizers } });
  const set = async (pod: string) => {
    try {
      await kubectl('-n', namespace, 'patch', 'pod', pod, '--type=merge', '-p', patch);
    } catch (error) {
      // A pod that is gone needs no release.
      if (!String(error).includes('NotFound')) throw error;
    }
  };
  await Promise.all(pods.map(set));
}

/** Creates a namespace in which a cluster with Pod Security admission accepts only pods of the given profile. */
export async function createNamespace(name: string, profile: 'restricted' | 'privileged') {
  const [key = '', value] = LABEL.split('=');
  const labels = { [key]: value, 'pod-security.kubernetes.io/enforce': profile };
  await create({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } });
  // Pods are refused until the namespace has its service account.
  const hasAccount = () => kubectl('-n', name, 'get', 'serviceaccount', 'default', '--ignore-not-found');
  while ((await hasAccount()) === '') await sleep(100);
}
