import { request } from 'undici';
import { describeBooksApi, startBookServices, stopBookServices } from './books-suite';
import { Postgres } from './postgres';
import { type Program, programStarter } from './programs';

let postgres: Postgres;

jest.setTimeout(60_000);

beforeAll(async () => {
  postgres = await Postgres.create();
});

afterAll(() => postgres.remove());

describe('responds as it does with SQLite', () => {
  beforeAll(async () =>
    startBookServices({ behindApi: { DATABASE_URL: await postgres.createDatabase('suite') }, direct: {} }),
  );
  afterAll(stopBookServices);

  describeBooksApi();
});

describe('processes that share a database', () => {
  const startProgram = programStarter();
  let databases = 0;
  let url = '';

  beforeEach(async () => {
    url = await postgres.createDatabase(`several_${++databases}`);
  });

  const startApi2 = () => startProgram('api2', { DATABASE_URL: url });

  test('three processes that open a new database at once become ready and store 200 parallel posts without a loss or a 5xx', async () => {
    const programs = await Promise.all([1, 2, 3].map(startApi2));
    const responses = await Promise.all(
      Array.from({ length: 200 }, (_, i) => post(programs[i % 3] as Program, `Volume ${i}`)),
    );
    expect(responses.filter(({ status }) => status !== 201)).toEqual([]);
    expect(await count(url)).toBe(200);
  });

  test('twenty parallel posts with one key to two processes create one book', async () => {
    const programs = await Promise.all([startApi2(), startApi2()]);
    const responses = await Promise.all(
      Array.from({ length: 20 }, (_, i) => post(programs[i % 2] as Program, 'Once', 'key')),
    );
    expect(new Set(responses.map(({ status, text }) => `${status} ${text}`)).size).toBe(1);
    expect(responses[0]?.status).toBe(201);
    expect(await count(url)).toBe(1);
  });

  test('an idempotency key expires after 24 hours', async () => {
    const api2 = await startApi2();
    const first = await post(api2, 'Once', 'key');
    const ageKeys = (hours: number) =>
      postgres.query(
        `UPDATE idempotency_keys SET used_at = used_at - interval '${hours} hours'`,
        url.split('/').at(-1),
      );
    await ageKeys(23);
    expect(await post(api2, 'Once', 'key')).toEqual(first);
    await ageKeys(2);
    expect((await post(api2, 'Once', 'key')).text).not.toBe(first.text);
  });

  test('acknowledged books survive kill -9', async () => {
    const api2 = await startApi2();
    for (let i = 0; i < 50; i++) expect((await post(api2, `Volume ${i}`)).status).toBe(201);
    await api2.stop('SIGKILL');
    expect(await count(url)).toBe(50);
  });

  test('ten parallel PUTs with the same If-Match: one succeeds, nine get 412', async () => {
    const api2 = await startApi2();
    await post(api2, 'Emma');
    const { headers, body } = await request(`${api2.url}/books/1`);
    await body.dump();
    const puts = await Promise.all(
      Array.from({ length: 10 }, (_, i) => put(api2, `Version ${i}`, String(headers.etag))),
    );
    expect(puts.filter((status) => status === 200)).toHaveLength(1);
    expect(puts.filter((status) => status === 412)).toHaveLength(9);
  });

  test('while the database is down: 503 with Retry-After and not ready; recovers without losing an acknowledged book', async () => {
    const api2 = await startApi2();
    expect(await readiness(api2)).toBe('200 ok\n');
    const acknowledged: string[] = [];
    const statuses = new Set<number>();
    let isDone = false;
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; !isDone; i++) {
        const { status } = await post(api2, `Volume ${writer}-${i}`);
        statuses.add(status);
        if (status === 201) acknowledged.push(`Volume ${writer}-${i}`);
      }
    });
    await sleep(300);
    await postgres.stop();
    await sleep(300);
    const refused = await post(api2, 'while the database is down');
    expect(refused).toMatchObject({ status: 503, retryAfter: '1' });
    expect(JSON.parse(refused.text)).toMatchObject({ code: 'database_unavailable' });
    expect(refused.text).not.toMatch(/127\.0\.0\.1|ECONN/);
    expect(await readiness(api2)).toBe('503 waiting\n');
    expect((await request(`${api2.url}/respond`)).statusCode).toBe(200);
    await postgres.start();
    for (let i = 0; i < 100 && (await readiness(api2)) !== '200 ok\n'; i++) await sleep(50);
    await sleep(300);
    isDone = true;
    await Promise.all(writers);
    expect([...statuses].sort()).toEqual([201, 503]);
    const stored = (await postgres.query('SELECT title FROM books', url.split('/').at(-1))).map(
      ({ title }) => title,
    );
    expect(stored).toEqual(expect.arrayContaining(acknowledged));
    expect(acknowledged.length).toBeGreaterThan(20);
    expect(await api2.stop()).toBe(0);
  });

  test('starts without a database, and becomes ready when the database starts', async () => {
    await postgres.stop();
    const api2 = await startApi2();
    for (let i = 0; i < 3; i++) expect(await readiness(api2)).toBe('503 waiting\n');
    await postgres.start();
    expect(await readiness(api2)).toBe('200 ok\n');
    expect((await post(api2, 'Emma')).status).toBe(201);
    expect(await api2.stop()).toBe(0);
    expect(api2.lines().filter(({ msg }) => msg === 'database unavailable')).toMatchObject([
      { level: 'warn', err: { type: 'StoreUnavailableError' } },
    ]);
  });
});

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function post({ url }: Program, title: string, key?: string) {
  const { statusCode, headers, body } = await request(`${url}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(key && { 'idempotency-key': key }) },
    body: JSON.stringify({ title, author: 'a' }),
  });
  return { status: statusCode, retryAfter: headers['retry-after'], text: await body.text() };
}

async function put({ url }: Program, title: string, etag: string) {
  const { statusCode, body } = await request(`${url}/books/1`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json', 'if-match': etag },
    body: JSON.stringify({ title, author: 'a' }),
  });
  await body.dump();
  return statusCode;
}

async function readiness({ adminUrl }: Program) {
  const { statusCode, body } = await request(`${adminUrl}/readyz`);
  return `${statusCode} ${await body.text()}`;
}

async function count(url: string) {
  const rows = await postgres.query('SELECT count(*)::integer AS books FROM books', url.split('/').at(-1));
  return rows[0]?.books;
}
