import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readSettings as readApi } from '../services/api/settings';
import { readSettings as readApi2 } from '../services/api2/settings';

const { scripts } = JSON.parse(readFileSync('package.json', 'utf8')) as { scripts: Record<string, string> };
const compose = readFileSync('docker-compose.yml', 'utf8');
const read = (file: string) => ({ file, text: readFileSync(file, 'utf8') });
const documents = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'], {
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => file !== '' && existsSync(file))
  .map(read);

const rows = [
  ...read('docs/settings.md').text.matchAll(
    /^\| `([A-Z][A-Z0-9_]+)` \| (?:`([^`]*)`)? ?\| (api|api2|both) \|/gm,
  ),
].map(([, name, fallback, service]) => ({ name: String(name), fallback, service: String(service) }));

test('the settings table lists every variable that the settings read', () => {
  const folders = ['chassis', ...readdirSync('services').map((name) => `services/${name}`)];
  const files = folders.map((folder) => `${folder}/settings.ts`).filter(existsSync);
  expect(files.length).toBeGreaterThanOrEqual(3);
  const names = files.flatMap((file) =>
    [...read(file).text.matchAll(/^ {2,4}([A-Z][A-Z0-9_]+): /gm)].map(([, name]) => name),
  );
  expect(rows.map(({ name }) => name).sort()).toEqual(names.sort());
});

test.each(rows.filter(({ fallback }) => fallback !== undefined))('the default of $name is right', (row) => {
  const env = { [row.name]: row.fallback };
  if (row.service !== 'api2') expect(readApi(env)).toEqual(readApi({}));
  if (row.service !== 'api') expect(readApi2(env)).toEqual(readApi2({}));
});

test.each(['README.md', 'CONTRIBUTING.md'])('every npm script that %s names exists', (file) => {
  const named = [...read(file).text.matchAll(/npm run ([a-z0-9:]+)/g)].map(([, name]) => String(name));
  expect(named.length).toBeGreaterThan(0);
  for (const name of named) expect(scripts).toHaveProperty([name]);
});

test('CONTRIBUTING.md names every test script', () => {
  const { text } = read('CONTRIBUTING.md');
  for (const name of Object.keys(scripts).filter((script) => script.startsWith('test:')))
    expect(text).toContain(`\`npm run ${name}\``);
});

test('the ports in the README are those of the compose file and of npm start', () => {
  const { text } = read('README.md');
  const published = /127\.0\.0\.1:\d+(?=\}:8080)/.exec(compose)?.[0];
  expect(text).toContain(
    `| \`docker compose up\` | \`${published}\` | not published | not published | not published |`,
  );
  const { port, adminPort } = readApi({});
  const [, api2Port, api2AdminPort] = /PORT=(\d+) ADMIN_PORT=(\d+)/.exec(
    String(scripts['start:local:api2']),
  ) as RegExpExecArray;
  const ports = [port, adminPort, api2Port, api2AdminPort].map((number) => `\`127.0.0.1:${number}\``);
  expect(text).toContain(`| \`npm start\`, \`npm run dev\` | ${ports.join(' | ')} |`);
  expect(scripts['dev:local:api2']).toContain(`PORT=${api2Port} ADMIN_PORT=${api2AdminPort}`);
});

test('kubectl port-forward uses a local port that the compose file does not publish', () => {
  const { text } = read('docs/kubernetes.md');
  const forwarded = [...text.matchAll(/port-forward \S+ (\d+):\d+/g)].map(([, port]) => port);
  const published = [...compose.matchAll(/127\.0\.0\.1:(\d+)\}:\d+/g)].map(([, port]) => port);
  expect(forwarded).toHaveLength(1);
  expect(published).toHaveLength(1);
  expect(forwarded).not.toEqual(published);
});

test('every relative link in a document leads to a file and a heading that exist', () => {
  const broken = documents.flatMap(({ file, text }) =>
    [...text.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target]) => String(target))
      .filter((target) => !/^[a-z]+:/.test(target) && !exists(file, target))
      .map((target) => `${file}: ${target}`),
  );
  expect(broken).toEqual([]);
});

function exists(from: string, target: string) {
  const [path, anchor] = target.split('#');
  const file = path ? join(dirname(from), path) : from;
  return existsSync(file) && (anchor === undefined || anchorsOf(file).includes(anchor));
}

/** The anchors that GitHub gives to the headings of a document. */
function anchorsOf(file: string) {
  return [...read(file).text.matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    String(heading)
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}
