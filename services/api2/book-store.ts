import { createHash } from 'node:crypto';
import type { Book, NewBook } from '../../contract/books';

/** Where the books are kept. What it acknowledges survives the end of the process. */
export interface BookStore {
  /** At most `limit` books in order of creation, those after the book `after`, which may be gone. */
  list(limit: number, after: string | undefined): Promise<Book[]>;
  get(id: string): Promise<Book | undefined>;
  /**
   * Adds a book. The same book with the same `key` within a day is not added twice: it has the id of the first.
   * @throws {KeyReused}
   */
  create(book: NewBook, key: string | undefined): Promise<Book>;
  /**
   * Replaces a book by what `to` makes of it, or deletes it where that is undefined; nobody changes it
   * in between. What `to` throws leaves it as it is.
   * @returns whether there is such a book
   */
  change(id: string, to: (current: Book) => NewBook | undefined): Promise<boolean>;
  /** Whether it can be used now. */
  isReady(): Promise<boolean>;
  close(): Promise<void>;
}

/** Tells the same book again, also where it is not kept itself. */
export function fingerprintOf({ title, author, year }: NewBook) {
  return createHash('sha256')
    .update(JSON.stringify([title, author, year]))
    .digest('base64url');
}

/** The idempotency key belongs to another book. */
export class KeyReused extends Error {}

/**
 * The database cannot be reached, or is busy, for now. Nothing was acknowledged; whether a commit that broke
 * off happened can't be known.
 */
export class StoreUnavailable extends Error {}

/** How long an idempotency key is remembered. */
export const KEY_LIVES_MS = 24 * 60 * 60 * 1000;

/** How many idempotency keys are remembered at most; past that, the oldest is forgotten before its day is over. */
export const MOST_KEYS = 1_000_000;
