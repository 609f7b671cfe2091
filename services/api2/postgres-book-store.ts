import { DatabaseError, Pool, type PoolClient } from 'pg';
import type { Logger } from '../../chassis/telemetry/logger';
import type { Book, NewBook } from '../../contract/books';
import {
  type BookStore,
  fingerprintOf,
  IDEMPOTENCY_KEY_TTL_MS,
  IdempotencyKeyReusedError,
  MAX_IDEMPOTENCY_KEYS,
  StoreUnavailableError,
} from './book-store';

// `onehop_migrations` records the migrations that were applied to the database.
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

// An arbitrary number; all processes must use the same one.
const MIGRATION_LOCK = 7_461_250;
const CONNECTIONS = 10;
// Below api's default deadline (API2_TIMEOUT_MS), so that api2 can report a hanging database in time.
const CONNECT_TIMEOUT_MS = 1000;
const QUERY_TIMEOUT_MS = 1500;

// SQLSTATE classes: connection, transaction state (a read-only standby), authorization, catalog,
// rollback (deadlock), resources, operator, system.
const UNAVAILABLE_CLASSES = new Set(['08', '25', '28', '3D', '40', '53', '57', '58']);

interface Row {
  id: string;
  title: string;
  author: string;
  year: number | null;
}

/** Stores the books in PostgreSQL, for processes on several machines. */
export class PostgresBookStore implements BookStore {
  private readonly pool: Pool;
  private migrated: Promise<void> | undefined;
  private wasReady = true;

  /** @param url of the database; the first connection is opened when it is needed */
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
    // An idle connection failed. The next query opens a new one.
    this.pool.on('error', (err) => log.warn({ err }, 'database connection lost'));
  }

  async isReady() {
    try {
      await this.withClient((client) => client.query('SELECT 1'));
      this.wasReady = true;
    } catch (err) {
      // Log the outage once, not on every readiness probe.
      if (this.wasReady) this.log.warn({ err }, 'database unavailable');
      this.wasReady = false;
    }
    return this.wasReady;
  }

  list(limit: number, after = '0') {
    return this.withClient(async (client) => {
      const sql = 'SELECT id, title, author, year FROM books WHERE id > $1 ORDER BY id LIMIT $2';
      return (await client.query<Row>(sql, [after, limit])).rows.map(toBook);
    });
  }

  get(id: string) {
    return this.withClient((client) => find(client, id, ''));
  }

  create(book: NewBook, key: string | undefined) {
    return this.transaction((client) =>
      key === undefined ? insert(client, book) : insertOnce(client, book, key),
    );
  }

  change(id: string, update: (current: Book) => NewBook | undefined) {
    return this.transaction(async (client) => {
      const current = await find(client, id, 'FOR UPDATE');
      if (current === undefined) return false;
      const updated = update(current);
      if (updated === undefined) await client.query('DELETE FROM books WHERE id = $1', [id]);
      else {
        const { title, author, year } = updated;
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
      if (isUnavailable(error)) throw new StoreUnavailableError('PostgreSQL', { cause: error });
      throw error;
    }
  }

  private async use<Result>(work: (client: PoolClient) => Promise<Result>): Promise<Result> {
    const client = await this.pool.connect();
    // If the connection fails between two queries, the next query reports the error.
    client.on('error', ignore);
    let isBroken = false;
    try {
      return await work(client);
    } catch (error) {
      isBroken = isUnavailable(error);
      throw error;
    } finally {
      client.off('error', ignore);
      // Discard a connection that may still have a pending query.
      client.release(isBroken);
    }
  }

  // Runs before the first query, and again after a failure: the database may start later than this process.
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
    // If the database is unavailable, skip ROLLBACK: the connection is discarded.
    if (!isUnavailable(error)) await client.query('ROLLBACK');
    throw error;
  }
}

async function migrate(client: PoolClient) {
  await client.query('SELECT pg_advisory_xact_lock($1)', [MIGRATION_LOCK]);
  await client.query('CREATE TABLE IF NOT EXISTS onehop_migrations (number integer PRIMARY KEY)');
  const { rows } = await client.query<{ applied: number }>(
    'SELECT count(*)::integer AS applied FROM onehop_migrations',
  );
  const applied = rows[0]?.applied ?? 0;
  for (const [i, migration] of MIGRATIONS.entries()) {
    if (i < applied) continue;
    await client.query(migration);
    await client.query('INSERT INTO onehop_migrations VALUES ($1)', [i + 1]);
  }
}

async function find(client: PoolClient, id: string, lock: '' | 'FOR UPDATE') {
  const sql = `SELECT id, title, author, year FROM books WHERE id = $1 ${lock}`;
  const [row] = (await client.query<Row>(sql, [id])).rows;
  return row && toBook(row);
}

async function insert(client: PoolClient, { title, author, year }: NewBook): Promise<Book> {
  const sql = 'INSERT INTO books (title, author, year) VALUES ($1, $2, $3) RETURNING id';
  const { rows } = await client.query<{ id: string }>(sql, [title, author, year]);
  return { id: String(rows[0]?.id), title, author, year };
}

async function insertOnce(client: PoolClient, book: NewBook, key: string): Promise<Book> {
  await deleteExpiredKeys(client, key);
  const fingerprint = fingerprintOf(book);
  // Blocks while another transaction uses the same key.
  const insertedKey = await client.query(
    'INSERT INTO idempotency_keys (key, fingerprint) VALUES ($1, $2) ON CONFLICT DO NOTHING',
    [key, fingerprint],
  );
  if (insertedKey.rowCount === 1) {
    const inserted = await insert(client, book);
    await client.query('UPDATE idempotency_keys SET book_id = $2 WHERE key = $1', [key, inserted.id]);
    return inserted;
  }
  const sql = 'SELECT fingerprint, book_id FROM idempotency_keys WHERE key = $1';
  const [existing] = (await client.query<{ fingerprint: string; book_id: string }>(sql, [key])).rows;
  if (existing?.fingerprint !== fingerprint) throw new IdempotencyKeyReusedError();
  return { id: existing.book_id, ...book };
}

// Skip other keys that are locked: two transactions that delete the same rows could deadlock.
async function deleteExpiredKeys(client: PoolClient, key: string) {
  const seconds = IDEMPOTENCY_KEY_TTL_MS / 1000;
  const expired = 'used_at < now() - make_interval(secs => $1)';
  await client.query(`DELETE FROM idempotency_keys WHERE key = $2 AND ${expired}`, [seconds, key]);
  await client.query(
    `DELETE FROM idempotency_keys WHERE key IN (
       SELECT key FROM idempotency_keys
       WHERE ${expired} OR number <= (SELECT max(number) FROM idempotency_keys) - $2
       LIMIT 100 FOR UPDATE SKIP LOCKED)`,
    [seconds, MAX_IDEMPOTENCY_KEYS],
  );
}

function toBook({ id, title, author, year }: Row): Book {
  return { id: String(id), title, author, year };
}

function isUnavailable(error: unknown) {
  if (error instanceof DatabaseError) return UNAVAILABLE_CLASSES.has(error.code?.slice(0, 2) ?? '');
  const { code, message } = Object(error) as NodeJS.ErrnoException;
  // Socket errors have a code. The driver's own errors only have a message.
  return /^E[A-Z_]+$/.test(code ?? '') || /timeout|connection terminated|not queryable/i.test(message ?? '');
}
