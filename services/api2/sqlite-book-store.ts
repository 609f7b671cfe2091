import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { SettingsError } from '../../chassis/settings';
import type { Book, NewBook } from '../../contract/books';
import {
  type BookStore,
  fingerprintOf,
  IDEMPOTENCY_KEY_TTL_MS,
  IdempotencyKeyReusedError,
  MAX_IDEMPOTENCY_KEYS,
  StoreUnavailableError,
} from './book-store';

// `user_version` is the number of migrations that were applied to the file.
const MIGRATIONS = [
  `CREATE TABLE books (
     id INTEGER PRIMARY KEY AUTOINCREMENT,
     title TEXT NOT NULL,
     author TEXT NOT NULL,
     year INTEGER
   ) STRICT;
   CREATE TABLE idempotency_keys (
     number INTEGER PRIMARY KEY AUTOINCREMENT,
     key TEXT NOT NULL UNIQUE,
     fingerprint TEXT NOT NULL,
     book_id INTEGER NOT NULL,
     used_at INTEGER NOT NULL
   ) STRICT;
   CREATE INDEX idempotency_keys_by_age ON idempotency_keys (used_at);`,
];

// How long a process waits for another one that is writing. It blocks the event loop meanwhile, so the limit is api's
// default deadline (API2_TIMEOUT_MS).
const BUSY_TIMEOUT_MS = 2000;
// SQLite result codes: BUSY, LOCKED, IOERR, FULL, CANTOPEN.
const UNAVAILABLE_CODES = new Set([5, 6, 10, 13, 14]);

interface Row {
  id: number;
  title: string;
  author: string;
  year: number | null;
}

/** Stores the books in a SQLite file, which several processes on one machine may share. */
export class SqliteBookStore implements BookStore {
  private readonly db: DatabaseSync;
  private readonly selectPage: StatementSync;
  private readonly selectBook: StatementSync;
  private readonly insertBook: StatementSync;
  private readonly updateBook: StatementSync;
  private readonly deleteBook: StatementSync;
  private readonly selectKey: StatementSync;
  private readonly insertKey: StatementSync;
  private readonly deleteExpiredKeys: StatementSync;

  /**
   * @param file is created with its folder if it does not exist
   * @throws {SettingsError} if the file cannot be opened
   */
  constructor(file: string) {
    this.db = open(file);
    const prepare = (sql: string) => this.db.prepare(sql);
    this.selectPage = prepare('SELECT id, title, author, year FROM books WHERE id > ? ORDER BY id LIMIT ?');
    this.selectBook = prepare('SELECT id, title, author, year FROM books WHERE id = ?');
    this.insertBook = prepare('INSERT INTO books (title, author, year) VALUES (?, ?, ?)');
    this.updateBook = prepare('UPDATE books SET title = ?, author = ?, year = ? WHERE id = ?');
    this.deleteBook = prepare('DELETE FROM books WHERE id = ?');
    this.selectKey = prepare('SELECT fingerprint, book_id FROM idempotency_keys WHERE key = ?');
    this.insertKey = prepare(
      'INSERT INTO idempotency_keys (key, fingerprint, book_id, used_at) VALUES (?, ?, ?, ?)',
    );
    this.deleteExpiredKeys = prepare(
      `DELETE FROM idempotency_keys
       WHERE used_at < ? OR number <= (SELECT max(number) FROM idempotency_keys) - ?`,
    );
  }

  async list(limit: number, after = '0') {
    return translateErrors(() => (this.selectPage.all(Number(after), limit) as unknown as Row[]).map(toBook));
  }

  async get(id: string) {
    return translateErrors(() => this.find(id));
  }

  async create(book: NewBook, key: string | undefined) {
    return this.transaction(() => (key === undefined ? this.insert(book) : this.insertOnce(book, key)));
  }

  async change(id: string, update: (current: Book) => NewBook | undefined) {
    return this.transaction(() => {
      const current = this.find(id);
      if (current === undefined) return false;
      const updated = update(current);
      if (updated === undefined) this.deleteBook.run(Number(id));
      else this.updateBook.run(updated.title, updated.author, updated.year, Number(id));
      return true;
    });
  }

  async isReady() {
    return true;
  }

  async close() {
    this.db.close();
  }

  private find(id: string) {
    const row = this.selectBook.get(Number(id)) as unknown as Row | undefined;
    return row && toBook(row);
  }

  private insert({ title, author, year }: NewBook): Book {
    const { lastInsertRowid } = this.insertBook.run(title, author, year);
    return { id: String(lastInsertRowid), title, author, year };
  }

  private insertOnce(book: NewBook, key: string): Book {
    const nowMs = Date.now();
    this.deleteExpiredKeys.run(nowMs - IDEMPOTENCY_KEY_TTL_MS, MAX_IDEMPOTENCY_KEYS);
    const fingerprint = fingerprintOf(book);
    const existing = this.selectKey.get(key);
    if (existing === undefined) {
      const inserted = this.insert(book);
      this.insertKey.run(key, fingerprint, Number(inserted.id), nowMs);
      return inserted;
    }
    if (existing.fingerprint !== fingerprint) throw new IdempotencyKeyReusedError();
    return { id: String(existing.book_id), ...book };
  }

  // A deferred transaction would fail without waiting if another process wrote before its first write.
  private transaction<Result>(work: () => Result): Result {
    return translateErrors(() => {
      this.db.exec('BEGIN IMMEDIATE');
      try {
        const result = work();
        this.db.exec('COMMIT');
        return result;
      } catch (error) {
        if (this.db.isTransaction) this.db.exec('ROLLBACK');
        throw error;
      }
    });
  }
}

function toBook({ id, title, author, year }: Row): Book {
  return { id: String(id), title, author, year };
}

function open(file: string) {
  try {
    mkdirSync(dirname(file), { recursive: true });
    const db = new DatabaseSync(file, { timeout: BUSY_TIMEOUT_MS });
    enableWal(db);
    // With FULL, acknowledged writes also survive a power failure (docs/decisions/0005-sqlite.md).
    db.exec('PRAGMA synchronous = FULL');
    migrate(db);
    return db;
  } catch (error) {
    throw new SettingsError([`DATABASE_FILE: expected a writable SQLite file: ${(error as Error).message}`]);
  }
}

// When several processes switch a new file to WAL mode at once, all but one get SQLITE_BUSY, whatever the busy timeout.
function enableWal(db: DatabaseSync) {
  const deadlineMs = performance.now() + BUSY_TIMEOUT_MS;
  for (;;) {
    try {
      return db.exec('PRAGMA journal_mode = WAL');
    } catch (error) {
      if (!isUnavailable(error) || performance.now() > deadlineMs) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    }
  }
}

function migrate(db: DatabaseSync) {
  db.exec('BEGIN IMMEDIATE');
  const applied = Number(db.prepare('PRAGMA user_version').get()?.user_version);
  if (applied > MIGRATIONS.length)
    throw new Error(`the file was written by a newer version of onehop (schema version ${applied})`);
  for (const migration of MIGRATIONS.slice(applied)) db.exec(migration);
  db.exec(`PRAGMA user_version = ${MIGRATIONS.length}; COMMIT`);
}

function translateErrors<Result>(work: () => Result): Result {
  try {
    return work();
  } catch (error) {
    if (isUnavailable(error)) throw new StoreUnavailableError('SQLite', { cause: error });
    throw error;
  }
}

function isUnavailable(error: unknown) {
  const { errcode } = Object(error) as { errcode?: unknown };
  return typeof errcode === 'number' && UNAVAILABLE_CODES.has(errcode & 0xff);
}
