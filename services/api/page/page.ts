import { byId, markBusy, tell } from './answer.js';
import { type Act, ask } from './ask.js';
import { BookForm } from './book-form.js';
import { Books } from './books.js';
import { Journal } from './journal.js';
import { Picture } from './picture.js';
import { Undo } from './undo.js';

const picture = new Picture(byId('picture'), byId('way'));
const journal = new Journal(byId<HTMLTableElement>('journal').tBodies[0] as HTMLTableSectionElement);

const record: Act = async (method, path, options) => {
  const outcome = await ask(method, path, options);
  journal.add(outcome);
  return outcome;
};

const follow: Act = async (method, path, options) => {
  picture.begin(method, path);
  const outcome = await record(method, path, options);
  picture.end(outcome);
  return outcome;
};

const act: Act = async (method, path, options) => {
  markBusy();
  const outcome = await follow(method, path, options);
  tell(outcome);
  return outcome;
};

// One at a time of each: a double click asks once.
function onPress(id: string, work: () => Promise<unknown>) {
  let busy = false;
  byId(id).addEventListener('click', async () => {
    if (busy) return;
    busy = true;
    await work();
    busy = false;
  });
}

onPress('hello', () => act('GET', '/hello'));
onPress('data', () => act('GET', '/data'));

const senders = { act, follow, record };
const books = new Books(senders);
const form = new BookForm(senders, books);
const undo = new Undo(act, books);
books.onEdit = (row) => form.edit(row);
books.onDeleted = (book) => undo.offer(book);
onPress('undo', () => undo.run());
onPress('more', () => books.more());
onPress('reload', () => books.reload());
void books.reload();
