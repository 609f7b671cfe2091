import { byId, markBusy, tell } from './answer.js';
import { jsonOf, type Outcome, type Senders } from './ask.js';
import type { Book, Books, Fields, Row } from './books.js';
import { newKey } from './idempotency-key.js';

type FieldName = 'title' | 'author' | 'year';
type Typed = Record<FieldName, string>;

const NAMES: readonly FieldName[] = ['title', 'author', 'year'];
const DOUBLE_CLICK_MS = 500;
const EMPTY: Typed = { title: '', author: '', year: '' };

/** The form that adds a book, and changes one. */
export class BookForm {
  private editing: Row | undefined;
  /** What was typed for a new book, while another one is edited. */
  private draft = EMPTY;
  /** Of the book that is being added: the same one again is the same request. */
  private key = { of: '', value: '' };
  private conflict: { row: Row; mine: Typed; book: Book; etag: string } | undefined;
  private busy = false;
  private addedAtMs = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly senders: Senders,
    private readonly books: Books,
  ) {
    byId('book-form').addEventListener('submit', (event) => {
      event.preventDefault();
      void this.submit();
    });
    byId('cancel').addEventListener('click', () => this.leaveEditing(true));
    byId('keep-mine').addEventListener('click', () => void this.keepMine());
    byId('take-theirs').addEventListener('click', () => this.takeTheirs());
    books.onGone = (row) => {
      if (row === this.editing) this.toAdding(this.typed);
    };
  }

  /** Puts a book into the form. */
  edit(row: Row) {
    if (this.busy) return;
    if (this.editing === undefined) this.draft = this.typed;
    this.editing = row;
    this.hideConflict();
    this.fill(typedOf(row.book));
    this.showMode();
    byId('title').focus();
  }

  private async submit() {
    // The second click of a double click finds the form that the first one has emptied.
    const isSecondClick = performance.now() - this.addedAtMs < DOUBLE_CLICK_MS && isSame(this.typed, EMPTY);
    if (this.busy || isSecondClick) return;
    this.busy = true;
    markBusy();
    byId('save').setAttribute('aria-disabled', 'true');
    this.showFaults([]);
    const { editing } = this;
    await (editing ? this.replace(editing, await editing.shownEtag()) : this.add());
    byId('save').removeAttribute('aria-disabled');
    this.busy = false;
  }

  private async add() {
    const { typed } = this;
    const headers = { 'idempotency-key': this.keyFor(typed) };
    const outcome = await this.senders.act('POST', '/books', { body: fieldsOf(typed), headers });
    const book = jsonOf<Book>(outcome);
    if (outcome.status !== 201 || book === undefined) return this.showFaults(faultsOf(outcome));
    this.key = { of: '', value: '' };
    this.addedAtMs = performance.now();
    this.books.add(book, outcome.headers.get('etag') ?? '');
    // What was typed meanwhile stays.
    if (isSame(this.typed, typed)) this.fill(EMPTY);
    byId('title').focus();
  }

  private async replace(row: Row, etag: string | undefined) {
    const { typed } = this;
    if (etag === undefined) return void (await this.senders.act('GET', row.path));
    const headers = { 'if-match': etag };
    const outcome = await this.senders.act('PUT', row.path, { body: fieldsOf(typed), headers });
    const book = jsonOf<Book>(outcome);
    if (outcome.status === 412) return this.showConflict(row, typed, outcome);
    if (outcome.status === 404) return this.showGone(row, outcome);
    if (outcome.status !== 200 || book === undefined) return this.showFaults(faultsOf(outcome));
    row.update(book, outcome.headers.get('etag') ?? '');
    this.hideConflict();
    this.leaveEditing(true);
  }

  private async showConflict(row: Row, mine: Typed, outcome: Outcome) {
    tell(outcome, '412: this book was changed since it was shown here. Nothing was overwritten.');
    const now = await this.senders.record('GET', row.path);
    const book = jsonOf<Book>(now);
    if (now.status === 404) return this.showGone(row, now);
    if (now.status !== 200 || book === undefined) return tell(now);
    this.conflict = { row, mine, book, etag: now.headers.get('etag') ?? '' };
    byId('conflict-text').textContent =
      'Somebody else saved another version since you began. Nothing was overwritten. These are the two:';
    const rows = [versionRow('Yours', mine), versionRow('Theirs', typedOf(book))];
    byId<HTMLTableElement>('versions').tBodies[0]?.replaceChildren(...rows);
    byId('conflict').hidden = false;
    byId('conflict-heading').focus();
  }

  // What was typed becomes a new book, should they want it.
  private showGone(row: Row, outcome: Outcome) {
    tell(outcome, '404: this book was deleted meanwhile. What you typed is still in the form.');
    this.hideConflict();
    this.books.drop(row);
  }

  private async keepMine() {
    if (this.conflict === undefined || this.busy) return;
    const { row, mine, book, etag } = this.conflict;
    row.update(book, etag);
    this.editing = row;
    this.fill(mine);
    await this.submit();
  }

  private takeTheirs() {
    if (this.conflict === undefined) return;
    this.conflict.row.update(this.conflict.book, this.conflict.etag);
    this.hideConflict();
    this.leaveEditing(true);
  }

  private hideConflict() {
    this.conflict = undefined;
    byId('conflict').hidden = true;
  }

  private leaveEditing(focusRow: boolean) {
    const row = this.editing;
    this.hideConflict();
    this.toAdding(this.draft);
    if (focusRow) row?.editButton.focus();
  }

  private toAdding(typed: Typed) {
    this.editing = undefined;
    this.fill(typed);
    this.showMode();
  }

  private showMode() {
    const { editing } = this;
    byId('form-heading').textContent = editing ? `Edit “${editing.book.title}”` : 'Add a book';
    byId('save').textContent = editing ? 'Save book' : 'Add book';
    byId('cancel').hidden = editing === undefined;
  }

  private get typed(): Typed {
    const [title = '', author = '', year = ''] = NAMES.map((name) => byId<HTMLInputElement>(name).value);
    return { title, author, year };
  }

  private fill(typed: Typed) {
    for (const name of NAMES) byId<HTMLInputElement>(name).value = typed[name];
    this.showFaults([]);
  }

  private keyFor(typed: Typed) {
    const of = JSON.stringify(typed);
    if (this.key.of !== of) this.key = { of, value: newKey() };
    return this.key.value;
  }

  private showFaults(faults: readonly { pointer: string; detail: string }[]) {
    let first: HTMLElement | undefined;
    for (const name of NAMES) {
      const detail = faults.find(({ pointer }) => pointer === `/${name}`)?.detail ?? '';
      byId(`${name}-fault`).textContent = detail;
      byId(name).setAttribute('aria-invalid', String(detail !== ''));
      if (detail !== '') first ??= byId(name);
    }
    first?.focus();
  }
}

function typedOf({ title, author, year }: Fields): Typed {
  return { title, author, year: year === null ? '' : String(year) };
}

// What is no number goes as it is: api2 says what is wrong with it.
function fieldsOf({ title, author, year }: Typed): Fields {
  const trimmed = year.trim().replace('−', '-');
  if (trimmed === '') return { title, author, year: null };
  return { title, author, year: /^-?\d+$/.test(trimmed) ? Number(trimmed) : trimmed };
}

function faultsOf(outcome: Outcome) {
  return jsonOf<{ errors?: { pointer: string; detail: string }[] }>(outcome)?.errors ?? [];
}

function isSame(one: Typed, other: Typed) {
  return NAMES.every((name) => one[name] === other[name]);
}

function versionRow(name: string, { title, author, year }: Typed) {
  const row = document.createElement('tr');
  const head = document.createElement('th');
  head.scope = 'row';
  head.textContent = name;
  row.append(head);
  for (const text of [title, author, year || '–']) row.insertCell().textContent = text;
  return row;
}
