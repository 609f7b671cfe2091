import { type Exchange, jsonOf, type Send, type Senders } from './request.js';
import { byId, markBusy, showResponse } from './response.js';

export interface BookFields {
  title: string;
  author: string;
  year: number | string | null;
}

export interface Book extends BookFields {
  id: string;
}

const PAGE_SIZE = 10;
// No book has the empty entity tag, so a request with it in `If-Match` always fails with 412.
const NON_MATCHING_ETAG = '""';

/** A row of the table. It shows one version of a book. */
export class BookRow {
  readonly element = document.createElement('tr');
  readonly editButton = createButton('Edit');
  readonly deleteButton = createButton('Delete');

  constructor(
    private readonly sendLogged: Send,
    public book: Book,
    private etag?: string,
  ) {
    this.render();
  }

  get path() {
    return `/books/${this.book.id}`;
  }

  /** Shows another version of the book. */
  update(book: Book, etag: string) {
    this.book = book;
    this.etag = etag;
    this.render();
  }

  /** The ETag of the version that is shown; undefined if it cannot be read from api2 now. */
  async shownEtag() {
    if (this.etag !== undefined) return this.etag;
    const etag = await this.readEtag();
    // update() may have set a newer ETag in the meantime.
    this.etag ??= etag;
    return this.etag;
  }

  // A list contains no ETags, so the ETag is requested when a book is about to be changed. If the book has
  // changed by then, the ETag of the version that is shown is unknown, and the change must fail.
  private async readEtag() {
    const exchange = await this.sendLogged('GET', this.path);
    if (exchange.status === 404) return NON_MATCHING_ETAG;
    const book = exchange.status === 200 ? jsonOf<Book>(exchange) : undefined;
    if (book === undefined) return undefined;
    return isSame(book, this.book) ? (exchange.headers.get('etag') ?? undefined) : NON_MATCHING_ETAG;
  }

  private render() {
    const { id, title, author, year } = this.book;
    const titleCell = createCell('th', title);
    titleCell.id = `book-${id}`;
    titleCell.scope = 'row';
    for (const button of [this.editButton, this.deleteButton])
      button.setAttribute('aria-describedby', titleCell.id);
    const actions = document.createElement('div');
    actions.className = 'actions';
    actions.append(this.editButton, this.deleteButton);
    const actionsCell = document.createElement('td');
    actionsCell.append(actions);
    // Moving a focused button removes its focus, so it is restored afterwards.
    const focused = this.element.contains(document.activeElement) ? document.activeElement : null;
    this.element.replaceChildren(
      titleCell,
      createCell('td', author),
      createCell('td', year === null ? '–' : String(year)),
      actionsCell,
    );
    if (focused instanceof HTMLElement) focused.focus();
  }
}

/** The table of books. */
export class Books {
  onEdit: (row: BookRow) => void = () => {};
  onRemoved: (row: BookRow) => void = () => {};
  /** Called after a book was deleted here; returns the button that restores it. */
  onDeleted: (book: Book) => HTMLElement | undefined = () => undefined;
  private listed: BookRow[] = [];
  // Books that the page has added. They are shown last until the list includes them.
  private added: BookRow[] = [];
  private next: string | null = null;
  private readonly body = byId<HTMLTableElement>('books').tBodies[0] as HTMLTableSectionElement;

  constructor(private readonly senders: Senders) {}

  private get rows() {
    return [...this.listed, ...this.added];
  }

  /** Loads the list from its first page. */
  async reload() {
    const exchange = await this.senders.sendWithDiagram('GET', `/books?limit=${PAGE_SIZE}`);
    byId('reload').hidden = false;
    if (exchange.status !== 200 || exchange.failure) return showLoadError();
    this.listed = [];
    this.added = [];
    this.appendPage(exchange);
  }

  /** Loads the next page of the list. */
  async loadMore() {
    const path = `/books?limit=${PAGE_SIZE}&after=${this.next}`;
    const exchange = await this.senders.sendWithDiagram('GET', path);
    if (exchange.status !== 200 || exchange.failure) return showLoadError();
    this.appendPage(exchange);
  }

  /** Shows a book that was just added and returns its row. */
  add(book: Book, etag: string) {
    const existing = this.rows.find((row) => row.book.id === book.id);
    if (existing !== undefined) return existing;
    const row = this.createRow(book, etag);
    this.added.push(row);
    this.render();
    for (const { element } of this.rows) delete element.dataset.state;
    row.element.dataset.state = 'new';
    row.element.scrollIntoView({ block: 'nearest' });
    return row;
  }

  /** Removes a deleted book from the table. Focus in its row moves to `successor`, by default a neighbour. */
  remove(row: BookRow, successor = this.neighbourOf(row)) {
    if (row.element.contains(document.activeElement)) successor.focus();
    this.listed = this.listed.filter((other) => other !== row);
    this.added = this.added.filter((other) => other !== row);
    this.onRemoved(row);
    this.render();
  }

  private appendPage(exchange: Exchange) {
    const page = jsonOf<{ items: Book[]; next: string | null }>(exchange);
    if (page === undefined) return;
    for (const book of page.items) {
      const added = this.added.find(({ book: { id } }) => id === book.id);
      this.added = this.added.filter((other) => other !== added);
      this.listed.push(added ?? this.createRow(book));
    }
    this.next = page.next;
    this.render();
  }

  private createRow(book: Book, etag?: string) {
    const row = new BookRow(this.senders.sendLogged, book, etag);
    row.editButton.addEventListener('click', () => this.onEdit(row));
    row.deleteButton.addEventListener('click', ({ detail }) => {
      // The second click of a double click hits the row that moved up. It must not delete that one too.
      if (detail < 2) void this.delete(row);
    });
    return row;
  }

  private async delete(row: BookRow) {
    if (row.deleteButton.getAttribute('aria-disabled') === 'true') return;
    row.deleteButton.setAttribute('aria-disabled', 'true');
    markBusy();
    const etag = await row.shownEtag();
    const headers = etag === undefined ? {} : { 'if-match': etag };
    // Without the ETag, the book is only requested, so that the response shows what failed.
    const method = etag === undefined ? 'GET' : 'DELETE';
    const exchange = await this.senders.sendAndShow(method, row.path, { headers });
    row.deleteButton.removeAttribute('aria-disabled');
    if (exchange.status === 204) this.remove(row, this.onDeleted(row.book));
    if (exchange.status === 404) this.remove(row);
    if (exchange.status === 412) await this.showChanged(row, exchange);
  }

  private async showChanged(row: BookRow, exchange: Exchange) {
    showResponse(
      exchange,
      '412: the book was changed after it was loaded, so it was not deleted. The table now shows the current version.',
    );
    const current = await this.senders.sendLogged('GET', row.path);
    const book = jsonOf<Book>(current);
    if (current.status === 200 && book) row.update(book, current.headers.get('etag') ?? '');
    if (current.status === 404) this.remove(row);
  }

  private neighbourOf(row: BookRow): HTMLElement {
    const { rows } = this;
    const index = rows.indexOf(row);
    const neighbour = rows[index + 1] ?? rows[index - 1];
    return neighbour?.deleteButton ?? byId('title');
  }

  private render() {
    const elements = this.rows.map(({ element }) => element);
    for (const element of [...this.body.rows]) if (!elements.includes(element)) element.remove();
    elements.forEach((element, index) => {
      const current = this.body.rows[index];
      if (current !== element) this.body.insertBefore(element, current ?? null);
    });
    byId('more').hidden = this.next === null;
    byId('books-status').textContent = this.describe(elements.length);
  }

  private describe(count: number) {
    if (count === 0) return 'No books yet.';
    if (this.next === null) return `${count} ${count === 1 ? 'book' : 'books'} in total.`;
    return this.added.length === 0
      ? `Showing the first ${count} books. There are more.`
      : `Showing the first ${this.listed.length} books and those that you added. There are more in between.`;
  }
}

function showLoadError() {
  byId('books-status').textContent =
    'Could not load the books. The latest entry in the history shows the reason. Select Reload to try again.';
}

function isSame(one: Book, other: Book) {
  return one.title === other.title && one.author === other.author && one.year === other.year;
}

function createCell<Kind extends 'td' | 'th'>(kind: Kind, text: string) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function createButton(name: string) {
  const element = document.createElement('button');
  element.type = 'button';
  element.className = 'secondary small';
  element.textContent = name;
  return element;
}
