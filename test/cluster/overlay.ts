import { mkdirSync, writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import { stringify } from 'yaml';
import { IMAGE_TAG, kubectl, SERVICES } from './cluster';

const OVERLAYS = 'deploy/kubernetes/overlays';
const FOLDER = 'node_modules/.cache/onehop/cluster';
const IMAGES = { local: 'onehop-', production: 'registry.example.org/onehop-' };

/**
 * Applies an overlay in a namespace and with the images of the tests, as docs/kubernetes.md describes for overlays of
 * one's own. `greeting` is set by a ConfigMap.
 */
export async function apply(overlay: keyof typeof IMAGES, namespace: string, greeting?: string) {
  const folder = `${FOLDER}/${overlay}`;
  mkdirSync(folder, { recursive: true });
  const images = SERVICES.map((service) => ({
    name: `${IMAGES[overlay]}${service}`,
    newName: `onehop-${service}`,
    newTag: IMAGE_TAG,
  }));
  const resources = [relative(folder, `${OVERLAYS}/${overlay}`)];
  writeFileSync(
    `${folder}/kustomization.yaml`,
    stringify({ resources, namespace, images, ...(greeting === undefined ? {} : greetingOf(greeting)) }),
  );
  await kubectl('apply', '-k', folder);
}

function greetingOf(greeting: string) {
  const value = [{ configMapRef: { name: 'api2-settings' } }];
  return {
    configMapGenerator: [{ name: 'api2-settings', literals: [`GREETING=${greeting}`] }],
    patches: [
      {
        target: { kind: 'Deployment', name: 'api2' },
        patch: stringify([{ op: 'add', path: '/spec/template/spec/containers/0/envFrom', value }]),
      },
    ],
  };
}
