import { createHash } from 'node:crypto';
import type { Book, NewBook } from '../../contract/books';

/** Stores the books. Acknowledged writes survive the end of the process. */
export interface BookStore {
  /** Returns up to `limit` books in order of creation, starting after the book `after`, which may have been deleted. */
  list(limit: number, after: string | undefined): Promise<Book[]>;
  get(id: string): Promise<Book | undefined>;
  /**
   * Adds a book. If the same book was added with the same `key` within a day, returns that book instead.
   * @throws {IdempotencyKeyReusedError} if `key` was used for another book
   */
  create(book: NewBook, key: string | undefined): Promise<Book>;
  /**
   * Atomically replaces a book with the result of `update`, or deletes it if the result is undefined. If `update`
   * throws, the book is unchanged.
   * @returns whether the book exists
   */
  change(id: string, update: (current: Book) => NewBook | undefined): Promise<boolean>;
  /** Returns whether the store can serve requests now. */
  isReady(): Promise<boolean>;
  close(): Promise<void>;
}

/** Identifies the book that an idempotency key was used for, even after that book was deleted. */
export function fingerprintOf({ title, author, year }: NewBook) {
  return createHash('sha256')
    .update(JSON.stringify([title, author, year]))
    .digest('base64url');
}

/** The idempotency key was already used for another book. */
export class IdempotencyKeyReusedError extends Error {}

/**
 * The database is temporarily unreachable or busy. No write was acknowledged, but an interrupted commit may have
 * succeeded.
 */
export class StoreUnavailableError extends Error {}

/** How long an idempotency key is stored. */
export const IDEMPOTENCY_KEY_TTL_MS = 24 * 60 * 60 * 1000;

/** The maximum number of stored idempotency keys. Beyond it, the oldest are deleted before they expire. */
export const MAX_IDEMPOTENCY_KEYS = 1_000_000;
