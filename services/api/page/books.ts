import { byId, tell } from './answer.js';
import { type Act, ask, jsonOf, type Outcome } from './ask.js';

export interface Fields {
  title: string;
  author: string;
  year: number | string | null;
}

export interface Book extends Fields {
  id: string;
}

const PAGE = 10;

/** A book in the table, in the version that is shown there. */
export class Row {
  readonly element = document.createElement('tr');
  readonly editButton = button('Edit');
  readonly deleteButton = button('Delete');
  private etag: Promise<string | undefined>;

  constructor(
    public book: Book,
    etag?: string,
  ) {
    this.etag = etag === undefined ? this.readEtag() : Promise.resolve(etag);
    this.render();
  }

  get path() {
    return `/books/${this.book.id}`;
  }

  /** Shows another version. */
  update(book: Book, etag: string) {
    this.book = book;
    this.etag = Promise.resolve(etag);
    this.render();
  }

  /** The entity tag of the version that is shown; undefined where that is not to be had. */
  async shownEtag() {
    const etag = await this.etag;
    if (etag === undefined) this.etag = this.readEtag();
    return etag ?? (await this.etag);
  }

  // A list has no tags. This is asked when the row is made; a book that was changed since its list
  // was read is shown as it is now.
  private async readEtag() {
    const outcome = await ask('GET', this.path);
    const book = outcome.status === 200 ? jsonOf<Book>(outcome) : undefined;
    if (book === undefined) return undefined;
    if (!isSame(book, this.book)) {
      this.book = book;
      this.render();
    }
    return outcome.headers.get('etag') ?? undefined;
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
  private listed: Row[] = [];
  // Those that the page added itself stand at the end, until their page of the list is read.
  private added: Row[] = [];
  private next: string | null = null;
  private readonly body = byId<HTMLTableElement>('books').tBodies[0] as HTMLTableSectionElement;

  constructor(
    private readonly act: Act,
    private readonly follow: Act,
  ) {}

  /** Reads the list from its beginning. */
  async reload() {
    const outcome = await this.follow('GET', `/books?limit=${PAGE}`);
    if (this.refused(outcome)) return;
    this.listed = [];
    this.added = [];
    this.take(outcome);
  }

  /** Reads the next page of the list. */
  async more() {
    const outcome = await this.follow('GET', `/books?limit=${PAGE}&after=${this.next}`);
    if (!this.refused(outcome)) this.take(outcome);
  }

  /** Shows a book that was just added. */
  add(book: Book, etag: string) {
    if (this.rowOf(book.id) !== undefined) return;
    const row = this.newRow(book, etag);
    this.added.push(row);
    this.render();
    for (const { element } of [...this.listed, ...this.added]) delete element.dataset.state;
    row.element.dataset.state = 'new';
    row.element.scrollIntoView({ block: 'nearest' });
  }

  /** Takes a book out that is gone. */
  drop(row: Row) {
    this.focusBeside(row);
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
    const row = new Row(book, etag);
    row.editButton.addEventListener('click', () => this.onEdit(row));
    row.deleteButton.addEventListener('click', () => void this.delete(row));
    return row;
  }

  private async delete(row: Row) {
    if (row.deleteButton.getAttribute('aria-disabled') === 'true') return;
    row.deleteButton.setAttribute('aria-disabled', 'true');
    const etag = await row.shownEtag();
    const headers = etag === undefined ? {} : { 'if-match': etag };
    // Without the tag of what is shown nothing is deleted: the answer tells what is the matter.
    const outcome = await this.act(etag === undefined ? 'GET' : 'DELETE', row.path, { headers });
    row.deleteButton.removeAttribute('aria-disabled');
    if (outcome.status === 204 || outcome.status === 404) this.drop(row);
    if (outcome.status === 412) await this.showChanged(row, outcome);
  }

  private async showChanged(row: Row, outcome: Outcome) {
    tell(
      outcome,
      '412: this book was changed since it was shown here, so it was not deleted. The table has it as it is now.',
    );
    const now = await ask('GET', row.path);
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

  private focusBeside(row: Row) {
    if (!row.element.contains(document.activeElement)) return;
    const rows = [...this.listed, ...this.added];
    const place = rows.indexOf(row);
    const beside = rows[place + 1] ?? rows[place - 1];
    (beside?.deleteButton ?? byId('title')).focus();
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
