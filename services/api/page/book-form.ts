import type { Book, BookFields, BookRow, Books } from './books.js';
import { newIdempotencyKey } from './idempotency-key.js';
import { type Exchange, jsonOf, type Senders } from './request.js';
import { byId, markBusy, showResponse } from './response.js';

type FieldName = 'title' | 'author' | 'year';
type FormValues = Record<FieldName, string>;

interface ValidationError {
  pointer: string;
  detail: string;
}

const FIELD_NAMES: readonly FieldName[] = ['title', 'author', 'year'];
const DOUBLE_CLICK_MS = 500;
const EMPTY: FormValues = { title: '', author: '', year: '' };

/** The form that adds and edits books. */
export class BookForm {
  private editing: BookRow | undefined;
  /** The values for a new book, kept while another book is edited. */
  private draft = EMPTY;
  /** The idempotency key of the book that is being added. A retry with the same values uses it again. */
  private key = { values: '', value: '' };
  private conflict: { row: BookRow; mine: FormValues; book: Book; etag: string } | undefined;
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
    byId('cancel').addEventListener('click', () => this.stopEditing());
    byId('keep-mine').addEventListener('click', () => void this.keepMine());
    byId('use-theirs').addEventListener('click', () => this.useTheirs());
    books.onRemoved = (row) => {
      if (row === this.editing) this.startAdding(this.values);
    };
  }

  /** Loads a book into the form. */
  edit(row: BookRow) {
    if (this.busy) return;
    if (this.editing === undefined) this.draft = this.values;
    this.editing = row;
    this.hideConflict();
    this.fill(valuesOf(row.book));
    this.showMode();
    byId('title').focus();
  }

  private async submit() {
    // The second click of a double click submits the form that the first one has emptied.
    const isSecondClick = performance.now() - this.addedAtMs < DOUBLE_CLICK_MS && isSame(this.values, EMPTY);
    if (this.busy || isSecondClick) return;
    this.busy = true;
    markBusy();
    byId('save').setAttribute('aria-disabled', 'true');
    this.showErrors([]);
    const { editing } = this;
    await (editing ? this.replace(editing, await editing.shownEtag()) : this.add());
    byId('save').removeAttribute('aria-disabled');
    this.busy = false;
  }

  private async add() {
    const { values } = this;
    const headers = { 'idempotency-key': this.keyFor(values) };
    const exchange = await this.senders.sendAndShow('POST', '/books', { body: fieldsOf(values), headers });
    const book = jsonOf<Book>(exchange);
    if (exchange.status !== 201 || book === undefined) return this.showErrors(errorsOf(exchange));
    this.key = { values: '', value: '' };
    this.addedAtMs = performance.now();
    this.books.add(book, exchange.headers.get('etag') ?? '');
    // Keep what was typed while the request was in progress.
    if (isSame(this.values, values)) this.fill(EMPTY);
    byId('title').focus();
  }

  private async replace(row: BookRow, etag: string | undefined) {
    const { values } = this;
    // Without the ETag, the book is only requested, so that the response shows what failed.
    if (etag === undefined) return void (await this.senders.sendAndShow('GET', row.path));
    const headers = { 'if-match': etag };
    const exchange = await this.senders.sendAndShow('PUT', row.path, { body: fieldsOf(values), headers });
    const book = jsonOf<Book>(exchange);
    if (exchange.status === 412) return this.showConflict(row, values, exchange);
    if (exchange.status === 404) return this.showDeleted(row, exchange);
    if (exchange.status !== 200 || book === undefined) return this.showErrors(errorsOf(exchange));
    row.update(book, exchange.headers.get('etag') ?? '');
    // Keep what was typed while the request was in progress.
    if (this.editing === row && isSame(this.values, values)) this.stopEditing();
  }

  private async showConflict(row: BookRow, mine: FormValues, exchange: Exchange) {
    showResponse(exchange, '412: the book was changed after it was loaded. Nothing was overwritten.');
    const current = await this.senders.sendLogged('GET', row.path);
    const book = jsonOf<Book>(current);
    if (current.status === 404) return this.showDeleted(row, current);
    if (current.status !== 200 || book === undefined) return showResponse(current);
    this.conflict = { row, mine, book, etag: current.headers.get('etag') ?? '' };
    byId('conflict-text').textContent =
      'The book was changed after you loaded it. Nothing was overwritten. Choose a version:';
    const rows = [createVersionRow('Yours', mine), createVersionRow('Theirs', valuesOf(book))];
    byId<HTMLTableElement>('versions').tBodies[0]?.replaceChildren(...rows);
    byId('conflict').hidden = false;
    byId('conflict-heading').focus();
  }

  // The form keeps its values, so that they can be added as a new book.
  private showDeleted(row: BookRow, exchange: Exchange) {
    showResponse(exchange, '404: the book was deleted in the meantime. Your input is still in the form.');
    this.hideConflict();
    this.books.remove(row);
  }

  private async keepMine() {
    if (this.conflict === undefined || this.busy) return;
    const { row, mine, book, etag } = this.conflict;
    row.update(book, etag);
    this.editing = row;
    this.fill(mine);
    await this.submit();
  }

  private useTheirs() {
    if (this.conflict === undefined) return;
    this.conflict.row.update(this.conflict.book, this.conflict.etag);
    this.stopEditing();
  }

  private hideConflict() {
    this.conflict = undefined;
    byId('conflict').hidden = true;
  }

  private stopEditing() {
    const row = this.editing;
    this.hideConflict();
    this.startAdding(this.draft);
    row?.editButton.focus();
  }

  private startAdding(values: FormValues) {
    this.editing = undefined;
    this.fill(values);
    this.showMode();
  }

  private showMode() {
    const { editing } = this;
    byId('form-heading').textContent = editing ? `Edit “${editing.book.title}”` : 'Add a book';
    byId('save').textContent = editing ? 'Save book' : 'Add book';
    byId('cancel').hidden = editing === undefined;
  }

  private get values(): FormValues {
    const [title = '', author = '', year = ''] = FIELD_NAMES.map(
      (name) => byId<HTMLInputElement>(name).value,
    );
    return { title, author, year };
  }

  private fill(values: FormValues) {
    for (const name of FIELD_NAMES) byId<HTMLInputElement>(name).value = values[name];
    this.showErrors([]);
  }

  private keyFor(formValues: FormValues) {
    const values = JSON.stringify(formValues);
    if (this.key.values !== values) this.key = { values, value: newIdempotencyKey() };
    return this.key.value;
  }

  private showErrors(errors: readonly ValidationError[]) {
    let firstInvalid: HTMLElement | undefined;
    for (const name of FIELD_NAMES) {
      const detail = errors.find(({ pointer }) => pointer === `/${name}`)?.detail ?? '';
      byId(`${name}-error`).textContent = detail;
      byId(name).setAttribute('aria-invalid', String(detail !== ''));
      if (detail !== '') firstInvalid ??= byId(name);
    }
    firstInvalid?.focus();
  }
}

function valuesOf({ title, author, year }: BookFields): FormValues {
  return { title, author, year: year === null ? '' : String(year) };
}

// A year that is not an integer is sent as text, so that api2 rejects it with a validation error.
function fieldsOf({ title, author, year }: FormValues): BookFields {
  const trimmed = year.trim().replace('−', '-');
  if (trimmed === '') return { title, author, year: null };
  return { title, author, year: /^-?\d+$/.test(trimmed) ? Number(trimmed) : trimmed };
}

function errorsOf(exchange: Exchange) {
  return jsonOf<{ errors?: ValidationError[] }>(exchange)?.errors ?? [];
}

function isSame(one: FormValues, other: FormValues) {
  return FIELD_NAMES.every((name) => one[name] === other[name]);
}

function createVersionRow(name: string, { title, author, year }: FormValues) {
  const row = document.createElement('tr');
  const heading = document.createElement('th');
  heading.scope = 'row';
  heading.textContent = name;
  row.append(heading);
  for (const text of [title, author, year || '–']) row.insertCell().textContent = text;
  return row;
}
