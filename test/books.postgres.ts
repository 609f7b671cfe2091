import { request } from 'undici';
import { describeBooks, startBooks, stopBooks } from './books-suite';
import { Postgres } from './postgres';
import { type Program, startedPrograms } from './programs';

let postgres: Postgres;

jest.setTimeout(60_000);

beforeAll(async () => {
  postgres = await Postgres.create();
});

afterAll(() => postgres.remove());

describe('the same answers as SQLite gives', () => {
  beforeAll(async () =>
    startBooks({ behind: { DATABASE_URL: await postgres.database('suite') }, direct: {} }),
  );
  afterAll(stopBooks);

  describeBooks();
});

describe('several processes', () => {
  const started = startedPrograms();
  let databases = 0;
  let url = '';

  beforeEach(async () => {
    url = await postgres.database(`several_${++databases}`);
  });

  const api2 = () => started('api2', { DATABASE_URL: url });

  test('that begin on a fresh database at once all become ready, and 200 parallel posts: none lost, no 5xx', async () => {
    const all = await Promise.all([1, 2, 3].map(api2));
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, i) => post(all[i % 3] as Program, `Volume ${i}`)),
    );
    expect(answers.filter(({ status }) => status !== 201)).toEqual([]);
    expect(await count(url)).toBe(200);
  });

  test('twenty parallel posts with one key over two: one book', async () => {
    const two = await Promise.all([api2(), api2()]);
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, i) => post(two[i % 2] as Program, 'Once', 'key')),
    );
    expect(new Set(answers.map(({ status, text }) => `${status} ${text}`)).size).toBe(1);
    expect(answers[0]?.status).toBe(201);
    expect(await count(url)).toBe(1);
  });

  test('a key is remembered for a day, and not longer', async () => {
    const one = await api2();
    const first = await post(one, 'Once', 'key');
    const age = (hours: number) =>
      postgres.query(
        `UPDATE idempotency_keys SET used_at = used_at - interval '${hours} hours'`,
        url.split('/').at(-1),
      );
    await age(23);
    expect(await post(one, 'Once', 'key')).toEqual(first);
    await age(2);
    expect((await post(one, 'Once', 'key')).text).not.toBe(first.text);
  });

  test('a book whose 201 was sent survives kill -9', async () => {
    const one = await api2();
    for (let i = 0; i < 50; i++) expect((await post(one, `Volume ${i}`)).status).toBe(201);
    await one.stop('SIGKILL');
    expect(await count(url)).toBe(50);
  });

  test('a change that somebody else waits for is seen by his If-Match', async () => {
    const one = await api2();
    await post(one, 'Emma');
    const { headers, body } = await request(`${one.url}/books/1`);
    await body.dump();
    const puts = await Promise.all(
      Array.from({ length: 10 }, (_, i) => put(one, `Version ${i}`, String(headers.etag))),
    );
    expect(puts.filter((status) => status === 200)).toHaveLength(1);
    expect(puts.filter((status) => status === 412)).toHaveLength(9);
  });

  test('the database dies under load: 503 with Retry-After and not ready, and back it goes on; nothing acknowledged is lost', async () => {
    const one = await api2();
    expect(await readiness(one)).toBe('200 ok\n');
    const acknowledged: string[] = [];
    const statuses = new Set<number>();
    let isOver = false;
    const writers = Array.from({ length: 8 }, async (_, writer) => {
      for (let i = 0; !isOver; i++) {
        const { status } = await post(one, `Volume ${writer}-${i}`);
        statuses.add(status);
        if (status === 201) acknowledged.push(`Volume ${writer}-${i}`);
      }
    });
    await sleep(300);
    await postgres.stop();
    await sleep(300);
    const refused = await post(one, 'while it is away');
    expect(refused).toMatchObject({ status: 503, retryAfter: '1' });
    expect(JSON.parse(refused.text)).toMatchObject({ code: 'database_unavailable' });
    expect(refused.text).not.toMatch(/127\.0\.0\.1|ECONN/);
    expect(await readiness(one)).toBe('503 waiting\n');
    expect((await request(`${one.url}/respond`)).statusCode).toBe(200);
    await postgres.start();
    for (let i = 0; i < 100 && (await readiness(one)) !== '200 ok\n'; i++) await sleep(50);
    await sleep(300);
    isOver = true;
    await Promise.all(writers);
    expect([...statuses].sort()).toEqual([201, 503]);
    const kept = (await postgres.query('SELECT title FROM books', url.split('/').at(-1))).map(
      ({ title }) => title,
    );
    expect(kept).toEqual(expect.arrayContaining(acknowledged));
    expect(acknowledged.length).toBeGreaterThan(20);
    expect(await one.stop()).toBe(0);
  });

  test('a database that is not there at the start: it starts, is not ready, and becomes it', async () => {
    await postgres.stop();
    const one = await api2();
    for (let i = 0; i < 3; i++) expect(await readiness(one)).toBe('503 waiting\n');
    await postgres.start();
    expect(await readiness(one)).toBe('200 ok\n');
    expect((await post(one, 'Emma')).status).toBe(201);
    expect(await one.stop()).toBe(0);
    expect(one.lines().filter(({ msg }) => msg === 'database not usable')).toMatchObject([
      { level: 'warn', err: { type: 'StoreUnavailable' } },
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
