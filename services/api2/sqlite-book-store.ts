import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { SettingsError } from '../../chassis/settings';
import type { Book, NewBook } from '../../contract/books';
import {
  type BookStore,
  fingerprintOf,
  KEY_LIVES_MS,
  KeyReused,
  MOST_KEYS,
  StoreUnavailable,
} from './book-store';

// `user_version` counts those that a file has had.
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

// How long one process waits for another that is writing, and answers nothing meanwhile: as long as api waits.
const BUSY_TIMEOUT_MS = 2000;
// Result codes of SQLite: BUSY, LOCKED, IOERR, FULL, CANTOPEN.
const UNAVAILABLE = new Set([5, 6, 10, 13, 14]);

interface Row {
  id: number;
  title: string;
  author: string;
  year: number | null;
}

/** Keeps the books in a SQLite file, which several processes of one machine may share. */
export class SqliteBookStore implements BookStore {
  private readonly db: DatabaseSync;
  private readonly selectPage: StatementSync;
  private readonly selectBook: StatementSync;
  private readonly insertBook: StatementSync;
  private readonly updateBook: StatementSync;
  private readonly deleteBook: StatementSync;
  private readonly selectKey: StatementSync;
  private readonly insertKey: StatementSync;
  private readonly deleteOldKeys: StatementSync;

  /**
   * @param file its folder is made
   * @throws {SettingsError} when it cannot be opened
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
    this.deleteOldKeys = prepare(
      `DELETE FROM idempotency_keys
       WHERE used_at < ? OR number <= (SELECT max(number) FROM idempotency_keys) - ?`,
    );
  }

  async list(limit: number, after = '0') {
    return tell(() => (this.selectPage.all(Number(after), limit) as unknown as Row[]).map(bookOf));
  }

  async get(id: string) {
    return tell(() => this.find(id));
  }

  async create(book: NewBook, key: string | undefined) {
    return this.transaction(() => (key === undefined ? this.add(book) : this.addOnce(book, key)));
  }

  async change(id: string, to: (current: Book) => NewBook | undefined) {
    return this.transaction(() => {
      const current = this.find(id);
      if (current === undefined) return false;
      const changed = to(current);
      if (changed === undefined) this.deleteBook.run(Number(id));
      else this.updateBook.run(changed.title, changed.author, changed.year, Number(id));
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
    return row && bookOf(row);
  }

  private add({ title, author, year }: NewBook): Book {
    const { lastInsertRowid } = this.insertBook.run(title, author, year);
    return { id: String(lastInsertRowid), title, author, year };
  }

  private addOnce(book: NewBook, key: string): Book {
    const nowMs = Date.now();
    this.deleteOldKeys.run(nowMs - KEY_LIVES_MS, MOST_KEYS);
    const fingerprint = fingerprintOf(book);
    const used = this.selectKey.get(key);
    if (used === undefined) {
      const added = this.add(book);
      this.insertKey.run(key, fingerprint, Number(added.id), nowMs);
      return added;
    }
    if (used.fingerprint !== fingerprint) throw new KeyReused();
    return { id: String(used.book_id), ...book };
  }

  // IMMEDIATE: a transaction that only later turns to writing is refused at once when another one writes.
  private transaction<Result>(work: () => Result): Result {
    return tell(() => {
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

function bookOf({ id, title, author, year }: Row): Book {
  return { id: String(id), title, author, year };
}

function open(file: string) {
  try {
    mkdirSync(dirname(file), { recursive: true });
    const db = new DatabaseSync(file, { timeout: BUSY_TIMEOUT_MS });
    inWalMode(db);
    // FULL: what was acknowledged survives the machine too (docs/decisions/0005-sqlite.md).
    db.exec('PRAGMA synchronous = FULL');
    migrate(db);
    return db;
  } catch (error) {
    throw new SettingsError([
      `DATABASE_FILE: expected a SQLite file that can be written: ${(error as Error).message}`,
    ]);
  }
}

// Of several processes that switch a fresh file at once all but one are told that it is locked,
// whatever the busy time-out.
function inWalMode(db: DatabaseSync) {
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
  const had = Number(db.prepare('PRAGMA user_version').get()?.user_version);
  if (had > MIGRATIONS.length) throw new Error(`it is of a newer version (${had}) of this program`);
  for (const migration of MIGRATIONS.slice(had)) db.exec(migration);
  db.exec(`PRAGMA user_version = ${MIGRATIONS.length}; COMMIT`);
}

function tell<Result>(work: () => Result): Result {
  try {
    return work();
  } catch (error) {
    if (isUnavailable(error)) throw new StoreUnavailable('SQLite', { cause: error });
    throw error;
  }
}

function isUnavailable(error: unknown) {
  const { errcode } = Object(error) as { errcode?: unknown };
  return typeof errcode === 'number' && UNAVAILABLE.has(errcode & 0xff);
}
