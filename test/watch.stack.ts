import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';
import { request } from 'undici';
import { ProjectCopy, waitUntilServed } from './project-copy';
import { docker } from './stack';

const run = promisify(execFile);
const project = new ProjectCopy();

const PRODUCTION = { files: ['-f', 'docker-compose.yml'], port: 18_084, name: 'onehop-order-test' };
const WATCH = { files: ['-f', 'docker-compose.watch.yml'], port: 18_085, name: 'onehop-order-test-dev' };
type StackConfig = typeof PRODUCTION;

const env = ({ port }: StackConfig) => ({ ...process.env, ONEHOP_PUBLISH: `127.0.0.1:${port}` });
const url = ({ port }: StackConfig) => `http://127.0.0.1:${port}`;

// These are the documented commands, without -p, because the project names in the files are under test.
async function compose(stack: StackConfig, ...args: string[]) {
  const options = { cwd: project.folder, env: env(stack), maxBuffer: 2 ** 28 };
  const { stdout } = await run('docker', ['compose', ...stack.files, ...args], options);
  return stdout.trim();
}

const up = () => compose(PRODUCTION, 'up', '--build', '--detach', '--wait');

/** Runs `docker compose watch` until `work` is done. */
async function whileWatching(work: () => Promise<void>) {
  const watch = spawn('docker', ['compose', ...WATCH.files, 'watch'], {
    cwd: project.folder,
    env: env(WATCH),
    detached: true,
  });
  let output = '';
  const enabled = new Promise<void>((resolve, reject) => {
    const collect = (data: Buffer) => {
      output += data;
      if (output.includes('Watch enabled')) resolve();
    };
    watch.stdout.on('data', collect);
    watch.stderr.on('data', collect);
    watch.once('exit', () => reject(new Error(`watch exited: ${output}`)));
  });
  const exited = once(watch, 'exit');
  try {
    await enabled;
    await waitUntilServed(`${url(WATCH)}/hello`, 'Hello World!', 30_000);
    await work();
  } finally {
    if (watch.exitCode === null) process.kill(-Number(watch.pid), 'SIGINT');
    await exited;
  }
}

async function addBook(stack: StackConfig, title: string) {
  const { statusCode, body } = await request(`${url(stack)}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ title, author: 'a' }),
  });
  await body.dump();
  return statusCode;
}

async function titles(stack: StackConfig) {
  const { body } = await request(`${url(stack)}/books`);
  const { items } = (await body.json()) as { items: { title: string }[] };
  return items.map(({ title }) => title);
}

async function containers(stack: StackConfig) {
  const ids = (await compose(stack, 'ps', '--all', '--quiet')).split('\n');
  const format = '{{.Config.Image}} {{.Image}} {{.Config.User}} restarts={{.RestartCount}}';
  return (await docker('inspect', '--format', format, ...ids)).split('\n').sort();
}

async function downBoth() {
  for (const stack of [PRODUCTION, WATCH])
    await compose(stack, 'down', '--volumes', '--rmi', 'local', '-t', '15');
}

beforeAll(async () => {
  for (const file of ['docker-compose.yml', 'docker-compose.watch.yml'])
    project.replace(file, 'name: onehop', `name: ${PRODUCTION.name}`);
  await downBoth();
}, 60_000);

afterAll(async () => {
  await downBoth();
  project.remove();
}, 60_000);

test('watch after up: reloads edits as uid 65532 and does not change the production stack', async () => {
  await up();
  expect(await addBook(PRODUCTION, 'before')).toBe(201);
  const before = await containers(PRODUCTION);

  await whileWatching(async () => {
    expect(await addBook(WATCH, 'while watching')).toBe(201);
    for (const path of project.edit('first')) await waitUntilServed(url(WATCH) + path, 'first', 10_000);
    for (const path of project.edit('second')) await waitUntilServed(url(WATCH) + path, 'second', 10_000);
    expect(await titles(WATCH)).toEqual(['while watching']);
    expect(await containers(WATCH)).toEqual([
      expect.stringMatching(/^onehop-order-test-dev-api \S+ 65532:65532 restarts=0$/),
      expect.stringMatching(/^onehop-order-test-dev-api2 \S+ 65532:65532 restarts=0$/),
    ]);
    const images = await docker(
      'images',
      '--no-trunc',
      '--format',
      '{{.Repository}} {{.ID}}',
      'onehop-order-test-*',
    );
    expect(images.split('\n').sort().slice(0, 2)).toEqual(before.map((line) => line.split(' ', 2).join(' ')));
  });

  await compose(PRODUCTION, 'up', '--detach', '--wait');
  expect(await containers(PRODUCTION)).toEqual(before);
  expect(await addBook(PRODUCTION, 'after')).toBe(201);
  expect(await titles(PRODUCTION)).toEqual(['before', 'after']);
}, 300_000);

test('up after watch on new volumes: the production stack becomes healthy and stores books', async () => {
  await downBoth();
  await whileWatching(async () => expect(await addBook(WATCH, 'while watching')).toBe(201));
  await compose(WATCH, 'down', '-t', '15');
  await up();
  expect(await addBook(PRODUCTION, 'after')).toBe(201);
  expect(await titles(PRODUCTION)).toEqual(['after']);
  await whileWatching(async () => expect(await titles(WATCH)).toEqual(['while watching']));
}, 300_000);
