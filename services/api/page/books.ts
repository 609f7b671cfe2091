import { byId, markBusy, tell } from './answer.js';
import { type Act, jsonOf, type Outcome, type Senders } from './ask.js';

export interface Fields {
  title: string;
  author: string;
  year: number | string | null;
}

export interface Book extends Fields {
  id: string;
}

const PAGE = 10;
// The empty entity tag: no version of a book has it, so `If-Match` with it never changes anything.
const TAG_OF_NO_VERSION = '""';

/** A book in the table, in the version that is shown there. */
export class Row {
  readonly element = document.createElement('tr');
  readonly editButton = button('Edit');
  readonly deleteButton = button('Delete');

  constructor(
    private readonly record: Act,
    public book: Book,
    private etag?: string,
  ) {
    this.render();
  }

  get path() {
    return `/books/${this.book.id}`;
  }

  /** Shows another version. */
  update(book: Book, etag: string) {
    this.book = book;
    this.etag = etag;
    this.render();
  }

  /** The value of `If-Match` for the version that is shown; undefined if api2 cannot tell it now. */
  async shownEtag() {
    this.etag ??= await this.readEtag();
    return this.etag;
  }

  // A list has no entity tags, and most of its books are only looked at. So the tag is requested when a
  // book from a list is about to be changed. If the book is another one by then, the tag of the version
  // that is shown cannot be known any more, and the change must fail.
  private async readEtag() {
    const outcome = await this.record('GET', this.path);
    if (outcome.status === 404) return TAG_OF_NO_VERSION;
    const book = outcome.status === 200 ? jsonOf<Book>(outcome) : undefined;
    if (book === undefined) return undefined;
    return isSame(book, this.book) ? (outcome.headers.get('etag') ?? undefined) : TAG_OF_NO_VERSION;
  }

  private render() {
    const { id, title, author, year } = this.book;
    const name = cell('th', title);
    name.id = `book-${id}`;
    name.scope = 'row';
    for (const control of [this.editButton, this.deleteButton])
      control.setAttribute('aria-describedby', name.id);
    const controls = document.createElement('div');
    controls.className = 'controls';
    controls.append(this.editButton, this.deleteButton);
    const last = document.createElement('td');
    last.append(controls);
    // Moving the focused button away would lose the focus.
    const focused = this.element.contains(document.activeElement) ? document.activeElement : null;
    this.element.replaceChildren(
      name,
      cell('td', author),
      cell('td', year === null ? '–' : String(year)),
      last,
    );
    if (focused instanceof HTMLElement) focused.focus();
  }
}

/** The table of the books. */
export class Books {
  onEdit: (row: Row) => void = () => {};
  onGone: (row: Row) => void = () => {};
  /** Called after a book was deleted here; returns the control that undoes it. */
  onDeleted: (book: Book) => HTMLElement | undefined = () => undefined;
  private listed: Row[] = [];
  // Those that the page added itself stand at the end, until their page of the list is read.
  private added: Row[] = [];
  private next: string | null = null;
  private readonly body = byId<HTMLTableElement>('books').tBodies[0] as HTMLTableSectionElement;

  constructor(private readonly senders: Senders) {}

  /** Reads the list from its beginning. */
  async reload() {
    const outcome = await this.senders.follow('GET', `/books?limit=${PAGE}`);
    byId('reload').hidden = false;
    if (this.refused(outcome)) return;
    this.listed = [];
    this.added = [];
    this.take(outcome);
  }

  /** Reads the next page of the list. */
  async more() {
    const outcome = await this.senders.follow('GET', `/books?limit=${PAGE}&after=${this.next}`);
    if (!this.refused(outcome)) this.take(outcome);
  }

  /** Shows a book that was just added, and returns its row. */
  add(book: Book, etag: string) {
    const shown = this.rowOf(book.id);
    if (shown !== undefined) return shown;
    const row = this.newRow(book, etag);
    this.added.push(row);
    this.render();
    for (const { element } of [...this.listed, ...this.added]) delete element.dataset.state;
    row.element.dataset.state = 'new';
    row.element.scrollIntoView({ block: 'nearest' });
    return row;
  }

  /** Takes a book out that is gone. The focus moves from its row to `successor`, or else to a row beside it. */
  drop(row: Row, successor = this.controlBeside(row)) {
    if (row.element.contains(document.activeElement)) successor.focus();
    this.listed = this.listed.filter((other) => other !== row);
    this.added = this.added.filter((other) => other !== row);
    this.onGone(row);
    this.render();
  }

  private take(outcome: Outcome) {
    const page = jsonOf<{ items: Book[]; next: string | null }>(outcome);
    if (page === undefined) return;
    for (const book of page.items) {
      const added = this.added.find(({ book: { id } }) => id === book.id);
      this.added = this.added.filter((other) => other !== added);
      this.listed.push(added ?? this.newRow(book));
    }
    this.next = page.next;
    this.render();
  }

  private newRow(book: Book, etag?: string) {
    const row = new Row(this.senders.record, book, etag);
    row.editButton.addEventListener('click', () => this.onEdit(row));
    row.deleteButton.addEventListener('click', ({ detail }) => {
      // The second click of a double click hits the row that moved up. It must not delete that one too.
      if (detail < 2) void this.delete(row);
    });
    return row;
  }

  private async delete(row: Row) {
    if (row.deleteButton.getAttribute('aria-disabled') === 'true') return;
    row.deleteButton.setAttribute('aria-disabled', 'true');
    markBusy();
    const etag = await row.shownEtag();
    const headers = etag === undefined ? {} : { 'if-match': etag };
    // Without the tag of what is shown nothing is deleted: the answer tells what is the matter.
    const outcome = await this.senders.act(etag === undefined ? 'GET' : 'DELETE', row.path, { headers });
    row.deleteButton.removeAttribute('aria-disabled');
    if (outcome.status === 204) this.drop(row, this.onDeleted(row.book));
    if (outcome.status === 404) this.drop(row);
    if (outcome.status === 412) await this.showChanged(row, outcome);
  }

  private async showChanged(row: Row, outcome: Outcome) {
    tell(
      outcome,
      '412: this book was changed since it was shown here, so it was not deleted. The table has it as it is now.',
    );
    const now = await this.senders.record('GET', row.path);
    const book = jsonOf<Book>(now);
    if (now.status === 200 && book) row.update(book, now.headers.get('etag') ?? '');
    if (now.status === 404) this.drop(row);
  }

  private refused(outcome: Outcome) {
    const failed = outcome.status !== 200;
    if (failed)
      byId('books-state').textContent =
        'The books cannot be read now; the last line below tells why. Reload tries again.';
    return failed;
  }

  private rowOf(id: string) {
    return [...this.listed, ...this.added].find(({ book }) => book.id === id);
  }

  private controlBeside(row: Row): HTMLElement {
    const rows = [...this.listed, ...this.added];
    const place = rows.indexOf(row);
    const beside = rows[place + 1] ?? rows[place - 1];
    return beside?.deleteButton ?? byId('title');
  }

  private render() {
    const rows = [...this.listed, ...this.added];
    const wanted = rows.map(({ element }) => element);
    for (const element of [...this.body.rows]) if (!wanted.includes(element)) element.remove();
    wanted.forEach((element, place) => {
      if (this.body.rows[place] !== element) this.body.insertBefore(element, this.body.rows[place] ?? null);
    });
    byId('more').hidden = this.next === null;
    byId('books-state').textContent = this.stateOf(rows.length);
  }

  private stateOf(shown: number) {
    if (shown === 0) return 'There are no books yet.';
    if (this.next === null) return `${shown} ${shown === 1 ? 'book' : 'books'}, all there are.`;
    return this.added.length === 0
      ? `The first ${shown} books; there are more.`
      : `There are more books between the first ${this.listed.length} and those just added.`;
  }
}

function isSame(one: Book, other: Book) {
  return one.title === other.title && one.author === other.author && one.year === other.year;
}

function cell<Kind extends 'td' | 'th'>(kind: Kind, text: string) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function button(name: string) {
  const element = document.createElement('button');
  element.type = 'button';
  element.className = 'quiet small';
  element.textContent = name;
  return element;
}
