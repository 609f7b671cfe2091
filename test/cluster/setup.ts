import { execFileSync } from 'node:child_process';
import {
  context,
  createNamespace,
  IMAGE_TAG,
  refusalOf,
  removeNamespaces,
  SERVICES,
  TOOLS_NAMESPACE,
} from './cluster';
import { createLoadPod } from './load-pod';

/**
 * Builds the images, loads them into the cluster with the command LOAD_IMAGES, to which their names are appended, and
 * creates the pod that sends the load. Exits with one sentence if the current context must not be used.
 */
export default async function setup() {
  const { LOAD_IMAGES, CLUSTER_CONTEXT } = process.env;
  const refusal = refusalOf(context, CLUSTER_CONTEXT);
  if (refusal !== undefined) {
    process.stderr.write(`${refusal}\n`);
    process.exit(1);
  }
  await removeNamespaces();
  const images = SERVICES.map((service) => `onehop-${service}:${IMAGE_TAG}`);
  for (const service of SERVICES)
    execFileSync(
      'docker',
      ['build', '--quiet', '--build-arg', `SERVICE=${service}`, '-t', `onehop-${service}:${IMAGE_TAG}`, '.'],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
  if (LOAD_IMAGES) execFileSync('sh', ['-c', `${LOAD_IMAGES} "$@"`, 'sh', ...images], { stdio: 'inherit' });
  await createNamespace(TOOLS_NAMESPACE, 'privileged');
  await createLoadPod();
}
