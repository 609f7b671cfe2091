import { readFileSync } from 'node:fs';
import { readSettings as readApi } from '../services/api/settings';
import { readSettings as readApi2 } from '../services/api2/settings';

const readme = readFileSync('README.md', 'utf8');
const { scripts } = JSON.parse(readFileSync('package.json', 'utf8')) as { scripts: Record<string, string> };

const rows = [...readme.matchAll(/^\| `([A-Z][A-Z0-9_]+)` \| (?:`([^`]*)`)? ?\| (api|api2|both) \|/gm)].map(
  ([, name, fallback, of]) => ({ name: String(name), fallback, of: String(of) }),
);

test('the settings table lists every variable that the settings read', () => {
  const sources = ['chassis', 'services/api', 'services/api2'].map((dir) =>
    readFileSync(`${dir}/settings.ts`, 'utf8'),
  );
  const read = sources.flatMap((source) =>
    [...source.matchAll(/^ {2,4}([A-Z][A-Z0-9_]+): /gm)].map(([, name]) => name),
  );
  expect(rows.map(({ name }) => name).sort()).toEqual(read.sort());
});

test.each(rows.filter(({ fallback }) => fallback !== undefined))('the default of $name is right', (row) => {
  const env = { [row.name]: row.fallback };
  if (row.of !== 'api2') expect(readApi(env)).toEqual(readApi({}));
  if (row.of !== 'api') expect(readApi2(env)).toEqual(readApi2({}));
});

test('every npm script that the README names exists', () => {
  const named = [...readme.matchAll(/npm run ([a-z0-9:]+)/g)].map(([, name]) => String(name));
  expect(named.length).toBeGreaterThan(0);
  for (const name of named) expect(scripts).toHaveProperty([name]);
});

test('kubectl port-forward uses a local port that the compose file does not publish', () => {
  const forwarded = [...readme.matchAll(/port-forward \S+ (\d+):\d+/g)].map(([, port]) => port);
  const compose = readFileSync('docker-compose.yml', 'utf8');
  const published = [...compose.matchAll(/127\.0\.0\.1:(\d+)\}:\d+/g)].map(([, port]) => port);
  expect(forwarded).toHaveLength(1);
  expect(published).toHaveLength(1);
  expect(forwarded).not.toEqual(published);
});
