import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { request } from 'undici';
import { type Program, runToEnd, startedPrograms } from './programs';

const started = startedPrograms();
let folder = '';
let file = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'onehop-'));
  file = join(folder, 'made', 'for', 'it', 'books.db');
});

afterEach(() => rmSync(folder, { recursive: true }));

async function post({ url }: Program, title: string, key?: string) {
  const { statusCode, body } = await request(`${url}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(key && { 'idempotency-key': key }) },
    body: JSON.stringify({ title, author: 'a' }),
  });
  return { status: statusCode, book: (await body.json()) as { id: string; title: string } };
}

async function titles({ url }: Program) {
  const found: string[] = [];
  for (let next: string | null = ''; next !== null; ) {
    const { body } = await request(`${url}/books?limit=100${next && `&after=${next}`}`);
    const page = (await body.json()) as { items: { title: string }[]; next: string | null };
    found.push(...page.items.map(({ title }) => title));
    next = page.next;
  }
  return found;
}

test('200 books whose 201 was sent survive kill -9', async () => {
  const api2 = await started('api2', { DATABASE_FILE: file });
  for (let i = 0; i < 200; i++) expect((await post(api2, `Volume ${i}`)).status).toBe(201);
  await api2.stop('SIGKILL');
  const again = await started('api2', { DATABASE_FILE: file });
  expect(await titles(again)).toEqual(Array.from({ length: 200 }, (_, i) => `Volume ${i}`));
});

test('posts under way when it is killed are whole or not there, and those acknowledged are', async () => {
  const api2 = await started('api2', { DATABASE_FILE: file });
  const acknowledged: string[] = [];
  const posts = Array.from({ length: 200 }, async (_, i) => {
    if ((await post(api2, `Volume ${i}`)).status === 201) acknowledged.push(`Volume ${i}`);
    if (acknowledged.length === 50) api2.child.kill('SIGKILL');
  });
  await Promise.allSettled(posts);
  expect(acknowledged.length).toBeGreaterThanOrEqual(50);
  const kept = await titles(await started('api2', { DATABASE_FILE: file }));
  expect(kept).toEqual(expect.arrayContaining(acknowledged));
});

test('four processes that begin on one fresh file at once, 200 parallel posts: none lost, no 5xx', async () => {
  const all = await Promise.all([1, 2, 3, 4].map(() => started('api2', { DATABASE_FILE: file })));
  const posts = Array.from({ length: 200 }, (_, i) => post(all[i % 4] as Program, `Volume ${i}`));
  const answers = await Promise.all(posts);
  expect(answers.filter(({ status }) => status !== 201)).toEqual([]);
  expect(new Set(answers.map(({ book }) => book.id)).size).toBe(200);
  for (const one of all) expect(new Set(await titles(one)).size).toBe(200);
});

test('twenty parallel posts with one key over two processes: one book, and after a restart too', async () => {
  const two = [
    await started('api2', { DATABASE_FILE: file }),
    await started('api2', { DATABASE_FILE: file }),
  ];
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, i) => post(two[i % 2] as Program, 'Once', 'key')),
  );
  expect(new Set(answers.map(({ status, book }) => `${status} ${JSON.stringify(book)}`)).size).toBe(1);
  for (const one of two) await one.stop();
  const again = await started('api2', { DATABASE_FILE: file });
  expect(await post(again, 'Once', 'key')).toEqual(answers[0]);
  expect(await post(again, 'Other', 'key')).toMatchObject({ status: 422 });
  expect(await titles(again)).toEqual(['Once']);
});

test('a key is remembered for a day, and not longer', async () => {
  const api2 = await started('api2', { DATABASE_FILE: file });
  const first = await post(api2, 'Once', 'key');
  const db = new DatabaseSync(file, { timeout: 5000 });
  const age = (hours: number) =>
    db.exec(`UPDATE idempotency_keys SET used_at = used_at - ${hours} * 3600 * 1000`);
  age(23);
  expect(await post(api2, 'Once', 'key')).toEqual(first);
  age(2);
  expect((await post(api2, 'Once', 'key')).book.id).not.toBe(first.book.id);
  expect(db.prepare('PRAGMA journal_mode').get()).toEqual({ journal_mode: 'wal' });
  expect(db.prepare('SELECT count(*) AS keys FROM idempotency_keys').get()).toEqual({ keys: 1 });
  db.close();
});

test('a database that another process holds locked: 503 with Retry-After, and it goes on afterwards', async () => {
  const api2 = await started('api2', { DATABASE_FILE: file });
  const db = new DatabaseSync(file);
  db.exec('BEGIN IMMEDIATE');
  const { statusCode, headers, body } = await request(`${api2.url}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"title":"a","author":"b"}',
  });
  expect(statusCode).toBe(503);
  expect(headers['retry-after']).toBe('1');
  expect(await body.json()).toMatchObject({ code: 'database_unavailable' });
  db.exec('ROLLBACK');
  db.close();
  expect((await post(api2, 'after')).status).toBe(201);
});

test.each([
  ['is a folder', () => folder],
  ['is in a folder that cannot be made', () => join(file, 'x')],
  ['is no database', () => join(folder, 'text')],
  ['is of a newer version', () => join(folder, 'newer.db')],
])('a DATABASE_FILE that %s: one clear message, and it exits 1', async (_what, path) => {
  writeFileSync(join(folder, 'text'), 'no database, but long enough to be taken for one? '.repeat(20));
  writeFileSync(join(folder, 'made'), '');
  const newer = new DatabaseSync(join(folder, 'newer.db'));
  newer.exec('PRAGMA user_version = 99');
  newer.close();
  const { code, output } = await runToEnd('api2', { DATABASE_FILE: path(), PORT: '0', ADMIN_PORT: '0' });
  expect(code).toBe(1);
  expect(output).toMatch(
    /^Wrong settings:\n {2}DATABASE_FILE: expected a SQLite file that can be written: .+\n$/,
  );
});
