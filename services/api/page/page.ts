import { formatMs } from './attempts.js';
import { BookForm } from './book-form.js';
import { Books } from './books.js';
import { Diagram } from './diagram.js';
import { RequestHistory } from './history.js';
import { type Send, send } from './request.js';
import { byId, markBusy, showResponse, showResult } from './response.js';
import { summarize } from './ten-at-once.js';
import { Undo } from './undo.js';

const diagram = new Diagram();
const historyTable = byId<HTMLTableElement>('history');
const requestHistory = new RequestHistory(historyTable.tBodies[0] as HTMLTableSectionElement);

const sendLogged: Send = async (method, path, options) => {
  const exchange = await send(method, path, options);
  requestHistory.add(exchange);
  return exchange;
};

const sendWithDiagram: Send = async (method, path, options) => {
  diagram.showRequest(method, path);
  const exchange = await sendLogged(method, path, options);
  diagram.showResult(exchange);
  return exchange;
};

const sendAndShow: Send = async (method, path, options) => {
  markBusy();
  const exchange = await sendWithDiagram(method, path, options);
  showResponse(exchange);
  return exchange;
};

async function sendConcurrently(count: number, method: string, path: string) {
  markBusy();
  diagram.showRequest(method, path, count);
  const exchanges = await Promise.all(Array.from({ length: count }, () => sendLogged(method, path)));
  diagram.showResults(exchanges);
  const ms = formatMs(Math.max(...exchanges.map(({ durationMs }) => durationMs)));
  const hasFailed = exchanges.some(({ failure }) => failure);
  showResult(
    `${count} × ${method} ${path} · ${ms} ms · request ids in the history`,
    summarize(exchanges),
    hasFailed,
  );
}

// Ignores clicks while the action runs, so that a double click sends one request.
function onClick(id: string, action: () => Promise<unknown>) {
  let busy = false;
  byId(id).addEventListener('click', async () => {
    if (busy) return;
    busy = true;
    await action();
    busy = false;
  });
}

onClick('hello', () => sendAndShow('GET', '/hello'));
onClick('ten', () => sendConcurrently(10, 'GET', '/hello'));
onClick('data', () => sendAndShow('GET', '/data'));

const senders = { sendAndShow, sendWithDiagram, sendLogged };
const books = new Books(senders);
const form = new BookForm(senders, books);
const undo = new Undo(sendAndShow, books);
books.onEdit = (row) => form.edit(row);
books.onDeleted = (book) => undo.offer(book);
onClick('undo', () => undo.restore());
onClick('more', () => books.loadMore());
onClick('reload', () => books.reload());
void books.reload();
