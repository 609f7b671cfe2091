import { setTimeout as sleep } from 'node:timers/promises';
import { bookMessage } from '../load';
import { Postgres } from '../postgres';
import { failuresOf, hasSucceeded, Installation } from './installation';
import { apply } from './overlay';

const NAMESPACE = 'onehop-test-production';
let postgres: Postgres;
let installation: Installation;

jest.setTimeout(150_000);

beforeAll(async () => {
  const { HOST_ADDRESS } = process.env;
  if (HOST_ADDRESS === undefined)
    throw new Error('Set HOST_ADDRESS to the address at which the pods of the cluster reach this machine.');
  postgres = await Postgres.create(HOST_ADDRESS);
  installation = await Installation.create(NAMESPACE);
  const url = await postgres.createRemoteDatabase('books');
  await installation.kubectl('create', 'secret', 'generic', 'books-database', `--from-literal=url=${url}`);
  await apply('production', NAMESPACE);
  // The autoscaler sets the minimum number of replicas.
  for (const service of ['api', 'api2'])
    await installation.kubectl(
      'wait',
      '--for=jsonpath={.status.availableReplicas}=2',
      `deployment/${service}`,
      '--timeout=90s',
    );
}, 150_000);

afterAll(async () => {
  await installation?.remove();
  await postgres?.remove();
});

test('rollout of api2 with 2 pods: no request fails, and no POST is lost or stored twice', async () => {
  const loads = await installation.underLoad(
    'rollout of api2 with PostgreSQL',
    async () => {
      await installation.rollOut('api2', () => apply('production', NAMESPACE, 'Hello from a ConfigMap!'));
    },
    { path: '/books', bookPrefix: 'Rollout' },
  );
  expect(failuresOf(loads)).toEqual([]);
  const titles = await installation.titles('Rollout');
  expect(titles).toHaveLength(loads.at(-1)?.sent ?? 0);
  expect(new Set(titles).size).toBe(titles.length);
});

test('restart of the database: /books responds with 503 and Retry-After only while it is away, and no acknowledged POST is lost', async () => {
  let stoppedMs = 0;
  let startedMs = 0;
  const [gets, hello, posts] = await installation.underLoad(
    'restart of the database',
    async () => {
      stoppedMs = Date.now();
      await postgres.stop('SIGINT');
      await sleep(3000);
      await postgres.start();
      startedMs = Date.now();
      await sleep(8000);
    },
    { path: '/books', bookPrefix: 'Restart' },
  );
  if (gets === undefined || hello === undefined || posts === undefined) throw new Error('a load is missing');
  expect(failuresOf([hello])).toEqual([]);
  const failures = failuresOf([gets, posts]);
  const lastMs = Math.max(...failures.map(({ sentAtMs }) => sentAtMs));
  process.stdout.write(
    `  away for ${startedMs - stoppedMs} ms; last failed request sent ${Math.round(lastMs - startedMs)} ms after the start\n`,
  );
  expect(failuresOf([posts]).length).toBeGreaterThan(0);
  for (const { status, retryAfter, sentAtMs, durationMs } of failures) {
    expect({ status, retryAfter }).toEqual({ status: 503, retryAfter: expect.stringMatching(/^\d+$/) });
    expect(sentAtMs + durationMs).toBeGreaterThan(stoppedMs);
    expect(sentAtMs).toBeLessThan(startedMs + 2000);
  }
  const stored = new Set(await installation.titles('Restart'));
  const acknowledged = posts.samples.filter(({ status }) => status === 201);
  expect(acknowledged.filter(({ number }) => !stored.has(`Restart ${number}`))).toEqual([]);

  // A POST that failed may have been stored. Its idempotency key makes it safe to repeat.
  const books = await installation.apiUrl('/books');
  for (const { number } of failuresOf([posts]))
    expect((await installation.load.request(books, bookMessage(`Restart ${number}`))).status).toBe(201);
  const titles = await installation.titles('Restart');
  expect(titles).toHaveLength(posts.sent);
  expect(new Set(titles).size).toBe(titles.length);
});

test('both pods that were replaced have stopped by themselves, with exit code 0', async () => {
  const stops = await installation.stops();
  expect(stops).toHaveLength(2);
  expect(stops.filter((stop) => !hasSucceeded(stop))).toEqual([]);
});
