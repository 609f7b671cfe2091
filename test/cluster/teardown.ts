import { removeNamespaces } from './cluster';

export default async function teardown() {
  await removeNamespaces();
}
