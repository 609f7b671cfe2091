import { DatabaseError, Pool, type PoolClient } from 'pg';
import type { Logger } from '../../chassis/logger';
import type { Book, NewBook } from '../../contract/books';
import {
  type BookStore,
  fingerprintOf,
  KEY_LIVES_MS,
  KeyReused,
  MOST_KEYS,
  StoreUnavailable,
} from './book-store';

// `onehop_migrations` counts those that a database has had.
const MIGRATIONS = [
  `CREATE TABLE books (
     id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
     title text NOT NULL,
     author text NOT NULL,
     year integer
   );
   CREATE TABLE idempotency_keys (
     number bigint GENERATED ALWAYS AS IDENTITY,
     key text PRIMARY KEY,
     fingerprint text NOT NULL,
     book_id bigint,
     used_at timestamptz NOT NULL DEFAULT now()
   );
   CREATE INDEX idempotency_keys_by_age ON idempotency_keys (used_at);
   CREATE INDEX idempotency_keys_by_number ON idempotency_keys (number);`,
];

// Any number will do, as long as all processes take the same.
const MIGRATION_LOCK = 7_461_250;
const CONNECTIONS = 10;
// Below the deadline of who asks: a database that hangs is told in time.
const CONNECT_TIMEOUT_MS = 1000;
const QUERY_TIMEOUT_MS = 1500;

// Classes of SQLSTATE: connection, transaction state (a read-only standby), authorization, catalog,
// rollback (deadlock), resources, operator, system.
const UNAVAILABLE = new Set(['08', '25', '28', '3D', '40', '53', '57', '58']);

interface Row {
  id: string;
  title: string;
  author: string;
  year: number | null;
}

/** Keeps the books in PostgreSQL, for several processes on several machines. */
export class PostgresBookStore implements BookStore {
  private readonly pool: Pool;
  private migrated: Promise<void> | undefined;
  private wasReady = true;

  /** @param url of the database; nothing is asked of it yet */
  constructor(
    url: string,
    private readonly log: Logger,
  ) {
    this.pool = new Pool({
      connectionString: url,
      max: CONNECTIONS,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: QUERY_TIMEOUT_MS,
      statement_timeout: QUERY_TIMEOUT_MS,
      idle_in_transaction_session_timeout: QUERY_TIMEOUT_MS,
      application_name: 'onehop',
    });
    // Of a connection that nobody uses just then; the next request opens another.
    this.pool.on('error', (err) => log.warn({ err }, 'database connection lost'));
  }

  async isReady() {
    try {
      await this.withClient((client) => client.query('SELECT 1'));
      this.wasReady = true;
    } catch (err) {
      // Told once, not by each probe.
      if (this.wasReady) this.log.warn({ err }, 'database not usable');
      this.wasReady = false;
    }
    return this.wasReady;
  }

  list(limit: number, after = '0') {
    return this.withClient(async (client) => {
      const sql = 'SELECT id, title, author, year FROM books WHERE id > $1 ORDER BY id LIMIT $2';
      return (await client.query<Row>(sql, [after, limit])).rows.map(bookOf);
    });
  }

  get(id: string) {
    return this.withClient((client) => find(client, id, ''));
  }

  create(book: NewBook, key: string | undefined) {
    return this.transaction((client) => (key === undefined ? add(client, book) : addOnce(client, book, key)));
  }

  change(id: string, to: (current: Book) => NewBook | undefined) {
    return this.transaction(async (client) => {
      const current = await find(client, id, 'FOR UPDATE');
      if (current === undefined) return false;
      const changed = to(current);
      if (changed === undefined) await client.query('DELETE FROM books WHERE id = $1', [id]);
      else {
        const { title, author, year } = changed;
        const sql = 'UPDATE books SET title = $2, author = $3, year = $4 WHERE id = $1';
        await client.query(sql, [id, title, author, year]);
      }
      return true;
    });
  }

  async close() {
    await this.pool.end();
  }

  private transaction<Result>(work: (client: PoolClient) => Promise<Result>): Promise<Result> {
    return this.withClient((client) => inTransaction(client, () => work(client)));
  }

  private async withClient<Result>(work: (client: PoolClient) => Promise<Result>): Promise<Result> {
    try {
      this.migrated ??= this.migrate();
      await this.migrated;
      return await this.use(work);
    } catch (error) {
      if (isUnavailable(error)) throw new StoreUnavailable('PostgreSQL', { cause: error });
      throw error;
    }
  }

  private async use<Result>(work: (client: PoolClient) => Promise<Result>): Promise<Result> {
    const client = await this.pool.connect();
    // A connection that breaks between two queries; the next one fails, and tells.
    client.on('error', ignore);
    let isBroken = false;
    try {
      return await work(client);
    } catch (error) {
      isBroken = isUnavailable(error);
      throw error;
    } finally {
      client.off('error', ignore);
      // One on which something was left unanswered is not used again.
      client.release(isBroken);
    }
  }

  // Before the first query, and again after it failed: the database may come later than this process.
  private async migrate() {
    try {
      await this.use((client) => inTransaction(client, () => migrate(client)));
    } catch (error) {
      this.migrated = undefined;
      throw error;
    }
  }
}

const ignore = () => {};

async function inTransaction<Result>(client: PoolClient, work: () => Promise<Result>): Promise<Result> {
  await client.query('BEGIN');
  try {
    const result = await work();
    await client.query('COMMIT');
    return result;
  } catch (error) {
    // What can't be rolled back goes with its connection.
    if (!isUnavailable(error)) await client.query('ROLLBACK');
    throw error;
  }
}

async function migrate(client: PoolClient) {
  await client.query('SELECT pg_advisory_xact_lock($1)', [MIGRATION_LOCK]);
  await client.query('CREATE TABLE IF NOT EXISTS onehop_migrations (number integer PRIMARY KEY)');
  const { rows } = await client.query<{ had: number }>(
    'SELECT count(*)::integer AS had FROM onehop_migrations',
  );
  const had = rows[0]?.had ?? 0;
  for (const [i, migration] of MIGRATIONS.entries()) {
    if (i < had) continue;
    await client.query(migration);
    await client.query('INSERT INTO onehop_migrations VALUES ($1)', [i + 1]);
  }
}

async function find(client: PoolClient, id: string, lock: '' | 'FOR UPDATE') {
  const sql = `SELECT id, title, author, year FROM books WHERE id = $1 ${lock}`;
  const [row] = (await client.query<Row>(sql, [id])).rows;
  return row && bookOf(row);
}

async function add(client: PoolClient, { title, author, year }: NewBook): Promise<Book> {
  const sql = 'INSERT INTO books (title, author, year) VALUES ($1, $2, $3) RETURNING id';
  const { rows } = await client.query<{ id: string }>(sql, [title, author, year]);
  return { id: String(rows[0]?.id), title, author, year };
}

async function addOnce(client: PoolClient, book: NewBook, key: string): Promise<Book> {
  await forgetOldKeys(client, key);
  const fingerprint = fingerprintOf(book);
  // Waits for a transaction that is using the same key.
  const taken = await client.query(
    'INSERT INTO idempotency_keys (key, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING',
    [key, fingerprint],
  );
  if (taken.rowCount === 1) {
    const added = await add(client, book);
    await client.query('UPDATE idempotency_keys SET book_id = $2 WHERE key = $1', [key, added.id]);
    return added;
  }
  const sql = 'SELECT fingerprint, book_id FROM idempotency_keys WHERE key = $1';
  const [used] = (await client.query<{ fingerprint: string; book_id: string }>(sql, [key])).rows;
  if (used?.fingerprint !== fingerprint) throw new KeyReused();
  return { id: used.book_id, ...book };
}

// Those of others only while nobody else is at it: two that delete the same rows could block each other.
async function forgetOldKeys(client: PoolClient, key: string) {
  const seconds = KEY_LIVES_MS / 1000;
  const isOld = 'used_at < now() - make_interval(secs => $1)';
  await client.query(`DELETE FROM idempotency_keys WHERE key = $2 AND ${isOld}`, [seconds, key]);
  await client.query(
    `DELETE FROM idempotency_keys WHERE key IN (
       SELECT key FROM idempotency_keys
       WHERE ${isOld} OR number <= (SELECT max(number) FROM idempotency_keys) - $2
       LIMIT 100 FOR UPDATE SKIP LOCKED)`,
    [seconds, MOST_KEYS],
  );
}

function bookOf({ id, title, author, year }: Row): Book {
  return { id: String(id), title, author, year };
}

function isUnavailable(error: unknown) {
  if (error instanceof DatabaseError) return UNAVAILABLE.has(error.code?.slice(0, 2) ?? '');
  const { code, message } = Object(error) as NodeJS.ErrnoException;
  // Of the socket, or of the driver, which has no codes of its own.
  return /^E[A-Z_]+$/.test(code ?? '') || /timeout|connection terminated|not queryable/i.test(message ?? '');
}
