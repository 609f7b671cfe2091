import type { Book, Books } from './books.js';
import { newIdempotencyKey } from './idempotency-key.js';
import { jsonOf, type Send } from './request.js';
import { byId, showResponse } from './response.js';

/** Offers to restore the most recently deleted book. */
export class Undo {
  // With the same key, a retry after a lost response does not add the book twice.
  private deleted: { book: Book; key: string } | undefined;

  constructor(
    private readonly sendAndShow: Send,
    private readonly books: Books,
  ) {}

  /** Shows the offer for a deleted book and returns its button. */
  offer(book: Book) {
    this.deleted = { book, key: newIdempotencyKey() };
    byId('deleted-text').textContent =
      `Deleted “${book.title}”. Undo adds it again as a new book with a new id.`;
    byId('deleted').hidden = false;
    return byId('undo');
  }

  /** Adds the book again. The offer stays if that fails. */
  async restore() {
    if (this.deleted === undefined) return;
    const { deleted } = this;
    const { id: _, ...body } = deleted.book;
    const headers = { 'idempotency-key': deleted.key };
    const exchange = await this.sendAndShow('POST', '/books', { body, headers });
    const book = jsonOf<Book>(exchange);
    if (exchange.status !== 201 || book === undefined) return;
    showResponse(exchange, `Added “${book.title}” again as a new book with the id ${book.id}.`);
    const row = this.books.add(book, exchange.headers.get('etag') ?? '');
    // Another book may have been deleted in the meantime. Then the offer is for that book.
    if (this.deleted !== deleted) return;
    this.deleted = undefined;
    if (document.activeElement === byId('undo')) row.editButton.focus();
    byId('deleted').hidden = true;
  }
}
