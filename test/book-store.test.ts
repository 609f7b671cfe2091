import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { request } from 'undici';
import { type Program, programStarter, runUntilExit } from './programs';

const startProgram = programStarter();
let folder = '';
let file = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'onehop-'));
  file = join(folder, 'new', 'nested', 'folder', 'books.db');
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

test('200 acknowledged books survive kill -9', async () => {
  const api2 = await startProgram('api2', { DATABASE_FILE: file });
  for (let i = 0; i < 200; i++) expect((await post(api2, `Volume ${i}`)).status).toBe(201);
  await api2.stop('SIGKILL');
  const restarted = await startProgram('api2', { DATABASE_FILE: file });
  expect(await titles(restarted)).toEqual(Array.from({ length: 200 }, (_, i) => `Volume ${i}`));
});

test('kill -9 during 200 parallel posts: every acknowledged book is stored', async () => {
  const api2 = await startProgram('api2', { DATABASE_FILE: file });
  const acknowledged: string[] = [];
  const posts = Array.from({ length: 200 }, async (_, i) => {
    if ((await post(api2, `Volume ${i}`)).status === 201) acknowledged.push(`Volume ${i}`);
    if (acknowledged.length === 50) api2.child.kill('SIGKILL');
  });
  await Promise.allSettled(posts);
  expect(acknowledged.length).toBeGreaterThanOrEqual(50);
  const stored = await titles(await startProgram('api2', { DATABASE_FILE: file }));
  expect(stored).toEqual(expect.arrayContaining(acknowledged));
});

test('four processes that open one new file at once store 200 parallel posts without a loss or a 5xx', async () => {
  const programs = await Promise.all([1, 2, 3, 4].map(() => startProgram('api2', { DATABASE_FILE: file })));
  const posts = Array.from({ length: 200 }, (_, i) => post(programs[i % 4] as Program, `Volume ${i}`));
  const responses = await Promise.all(posts);
  expect(responses.filter(({ status }) => status !== 201)).toEqual([]);
  expect(new Set(responses.map(({ book }) => book.id)).size).toBe(200);
  for (const program of programs) expect(new Set(await titles(program)).size).toBe(200);
});

test('twenty parallel posts with one key to two processes create one book, also after a restart', async () => {
  const programs = [
    await startProgram('api2', { DATABASE_FILE: file }),
    await startProgram('api2', { DATABASE_FILE: file }),
  ];
  const responses = await Promise.all(
    Array.from({ length: 20 }, (_, i) => post(programs[i % 2] as Program, 'Once', 'key')),
  );
  expect(new Set(responses.map(({ status, book }) => `${status} ${JSON.stringify(book)}`)).size).toBe(1);
  for (const program of programs) await program.stop();
  const restarted = await startProgram('api2', { DATABASE_FILE: file });
  expect(await post(restarted, 'Once', 'key')).toEqual(responses[0]);
  expect(await post(restarted, 'Other', 'key')).toMatchObject({ status: 422 });
  expect(await titles(restarted)).toEqual(['Once']);
});

test('an idempotency key expires after 24 hours', async () => {
  const api2 = await startProgram('api2', { DATABASE_FILE: file });
  const first = await post(api2, 'Once', 'key');
  const db = new DatabaseSync(file, { timeout: 5000 });
  const ageKeys = (hours: number) =>
    db.exec(`UPDATE idempotency_keys SET used_at = used_at - ${hours} * 3600 * 1000`);
  ageKeys(23);
  expect(await post(api2, 'Once', 'key')).toEqual(first);
  ageKeys(2);
  expect((await post(api2, 'Once', 'key')).book.id).not.toBe(first.book.id);
  expect(db.prepare('PRAGMA journal_mode').get()).toEqual({ journal_mode: 'wal' });
  expect(db.prepare('SELECT count(*) AS keys FROM idempotency_keys').get()).toEqual({ keys: 1 });
  db.close();
});

test('responds 503 with Retry-After while another process locks the database, and recovers after it', async () => {
  const api2 = await startProgram('api2', { DATABASE_FILE: file });
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
  ['is in a folder that cannot be created', () => join(file, 'x')],
  ['is not a database', () => join(folder, 'text')],
  ['has a newer schema version', () => join(folder, 'newer.db')],
])('exits 1 with one clear message if DATABASE_FILE %s', async (_case, path) => {
  writeFileSync(join(folder, 'text'), 'not a database, but longer than the header of one. '.repeat(20));
  writeFileSync(join(folder, 'new'), '');
  const newer = new DatabaseSync(join(folder, 'newer.db'));
  newer.exec('PRAGMA user_version = 99');
  newer.close();
  const { code, output } = await runUntilExit('api2', { DATABASE_FILE: path(), PORT: '0', ADMIN_PORT: '0' });
  expect(code).toBe(1);
  expect(output).toMatch(
    /^Invalid configuration:\n {2}DATABASE_FILE: expected a writable SQLite file: .+\n$/,
  );
});
