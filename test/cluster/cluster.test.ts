import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { refusalOf } from './cluster';

test.each(['kind-onehop', 'k3d-dev', 'minikube', 'docker-desktop', 'stand-in'])(
  'the cluster tests run in the context %s of a local cluster',
  (context) => {
    expect(refusalOf(context, undefined)).toBeUndefined();
  },
);

test.each(['production', 'prod-eu', 'kind-prod', 'arn:aws:eks:eu-west-1:123:cluster/shop', 'admin@shop', ''])(
  'the cluster tests refuse the context "%s" with one sentence, unless CLUSTER_CONTEXT names it',
  (context) => {
    expect(refusalOf(context, undefined)).toMatch(/^The tests [^.]+ context [^.]+\.$/);
    expect(refusalOf(context, 'another')).toBeDefined();
    if (context !== '') expect(refusalOf(context, context)).toBeUndefined();
  },
);

test('npm run test:cluster in a context that looks like production prints one sentence and exits before any other command', () => {
  const folder = mkdtempSync(join(tmpdir(), 'onehop-kubectl-'));
  const calls = join(folder, 'calls');
  const kubectl = `#!/bin/sh\necho "$@" >>${calls}\necho prod-eu\n`;
  writeFileSync(join(folder, 'kubectl'), kubectl);
  chmodSync(join(folder, 'kubectl'), 0o755);
  const { CLUSTER_CONTEXT: _, ...env } = process.env;
  const { status, stderr } = spawnSync('npm', ['run', '-s', 'test:cluster'], {
    env: { ...env, PATH: `${folder}${delimiter}${env.PATH}` },
    encoding: 'utf8',
  });
  expect(stderr).toBe(`${refusalOf('prod-eu', undefined)}\n`);
  expect(status).toBe(1);
  expect(readFileSync(calls, 'utf8')).toBe('config current-context\n');
  rmSync(folder, { recursive: true });
});
