// Reads Kubernetes objects as JSON from standard input, and prints their validation errors as a JSON array.
// It is a separate program because kubernetes-models is an ES module, which jest cannot load.
import { text } from 'node:stream/consumers';

const PACKAGES = {
  'monitoring.coreos.com': '@kubernetes-models/prometheus-operator',
  'gateway.networking.k8s.io': '@kubernetes-models/gateway-api',
};

const errors = [];
for (const object of JSON.parse(await text(process.stdin))) {
  const { apiVersion, kind, metadata } = object;
  const group = PACKAGES[apiVersion.split('/')[0]] ?? 'kubernetes-models';
  const models = await import(`${group}/${apiVersion}`).catch(() => ({}));
  const Model = models[kind];
  if (Model === undefined) errors.push(`${apiVersion} ${kind}: unknown kind`);
  else {
    try {
      new Model(object).validate();
    } catch (error) {
      errors.push(`${kind} ${metadata?.name}: ${error.message}`);
    }
  }
}
process.stdout.write(JSON.stringify(errors));
