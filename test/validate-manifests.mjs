// Reads Kubernetes objects as JSON from standard input, and prints what the schemas say against them.
// A program of its own: kubernetes-models is an ES module.
import { text } from 'node:stream/consumers';

const faults = [];
for (const object of JSON.parse(await text(process.stdin))) {
  const { apiVersion, kind, metadata } = object;
  const place = apiVersion === 'v1' ? 'v1' : apiVersion;
  const models = await import(`kubernetes-models/${place}`).catch(() => ({}));
  const Model = models[kind];
  if (Model === undefined) faults.push(`${apiVersion} ${kind}: there is no such kind`);
  else {
    try {
      new Model(object).validate();
    } catch (error) {
      faults.push(`${kind} ${metadata?.name}: ${error.message}`);
    }
  }
}
process.stdout.write(JSON.stringify(faults));
