import { byId, tell } from './answer.js';
import { type Act, jsonOf } from './ask.js';
import type { Book, Books } from './books.js';
import { newKey } from './idempotency-key.js';

/** Offers to add the book again that was deleted last. */
export class Undo {
  // The key makes a retry after a lost response the same request.
  private deleted: { book: Book; key: string } | undefined;

  constructor(
    private readonly act: Act,
    private readonly books: Books,
  ) {}

  /** Shows the offer for a deleted book, and returns its button. */
  offer(book: Book) {
    this.deleted = { book, key: newKey() };
    byId('deleted-text').textContent =
      `Deleted “${book.title}”. Undo adds it again as a new book with a new id.`;
    byId('deleted').hidden = false;
    return byId('undo');
  }

  /** Adds the book again. The offer stays if that fails. */
  async run() {
    if (this.deleted === undefined) return;
    const { deleted } = this;
    const { id: _, ...body } = deleted.book;
    const headers = { 'idempotency-key': deleted.key };
    const outcome = await this.act('POST', '/books', { body, headers });
    const book = jsonOf<Book>(outcome);
    if (outcome.status !== 201 || book === undefined) return;
    tell(outcome, `Added “${book.title}” again as a new book with the id ${book.id}.`);
    const row = this.books.add(book, outcome.headers.get('etag') ?? '');
    // Another book may have been deleted in the meantime; the offer is then for that one.
    if (this.deleted !== deleted) return;
    this.deleted = undefined;
    if (document.activeElement === byId('undo')) row.editButton.focus();
    byId('deleted').hidden = true;
  }
}
