import { type Request, type RequestHandler, type Response, Router } from 'express';
import { jsonBody, validBody } from '../../chassis/json-body';
import { checkPreconditions, etagOf, isNotModified } from '../../chassis/preconditions';
import { methodNotAllowed, nothingHere, Problem } from '../../chassis/problem';
import { queryOf } from '../../chassis/request-target';
import { send } from '../../chassis/send';
import { type Book, book, bookQuery, idempotencyKey, newBook } from '../../contract/books';
import { type BookStore, KeyReused, StoreUnavailable } from './book-store';

/** The resource `/books`, kept in `store`. */
export function books(store: BookStore): Router {
  const routes = Router();
  routes
    .route('/books')
    .get(list(store))
    .post(jsonBody(), create(store))
    .all(methodNotAllowed('GET', 'HEAD', 'POST'));
  routes
    .route('/books/:id')
    .get(read(store))
    .put(jsonBody(), replace(store))
    .delete(remove(store))
    .all(methodNotAllowed('GET', 'HEAD', 'PUT', 'DELETE'));
  routes.use(answerStoreFailure);
  return routes;
}

function list(store: BookStore): RequestHandler {
  return async function list(req, res) {
    const { limit, after } = pageOf(req);
    // One more than asked for tells whether there is a next page.
    const found = await store.list(limit + 1, after);
    const items = found.slice(0, limit);
    const next = found.length > limit ? (items.at(-1) as Book).id : null;
    if (next !== null) res.setHeader('link', `</books?limit=${limit}&after=${next}>; rel="next"`);
    sendJson(res, 200, JSON.stringify({ items, next }));
  };
}

function create(store: BookStore): RequestHandler {
  return async function create(req, res) {
    const key = keyOf(req);
    const created = await store.create(validBody(newBook, req.body), key);
    res.setHeader('location', `/books/${created.id}`);
    sendBook(res, 201, created);
  };
}

function read(store: BookStore): RequestHandler {
  return async function read(req, res) {
    const found = await store.get(idOf(req));
    if (found === undefined) throw nothingHere();
    if (!isNotModified(req.headers, tagOf(found))) return sendBook(res, 200, found);
    res.setHeader('etag', tagOf(found));
    res.setHeader('cache-control', 'no-cache');
    res.status(304).end();
  };
}

function replace(store: BookStore): RequestHandler {
  return async function replace(req, res) {
    const id = idOf(req);
    const becomes = validBody(newBook, req.body);
    const existed = await store.change(id, (current) => {
      checkPreconditions(req.headers, tagOf(current));
      return becomes;
    });
    if (!existed) throw nothingHere();
    sendBook(res, 200, { id, ...becomes });
  };
}

function remove(store: BookStore): RequestHandler {
  return async function remove(req, res) {
    const existed = await store.change(idOf(req), (current) => {
      checkPreconditions(req.headers, tagOf(current));
      return undefined;
    });
    if (!existed) throw nothingHere();
    res.status(204).end();
  };
}

function pageOf(req: Request) {
  const given = new URLSearchParams(queryOf(req));
  const one = (name: string) => (given.has(name) ? given.getAll(name).join() : undefined);
  const result = bookQuery.safeParse({ limit: one('limit'), after: one('after') });
  if (result.success) return result.data;
  const faults = result.error.issues.map(({ path, message }) => `${String(path[0])}: ${message}`);
  throw new Problem(400, 'invalid_query', { detail: faults.join(' ') });
}

function keyOf(req: Request) {
  const given = req.headers['idempotency-key'];
  if (given === undefined) return undefined;
  const result = idempotencyKey.safeParse(given);
  if (result.success) return result.data;
  const detail = `Idempotency-Key: ${result.error.issues.map(({ message }) => message).join(' ')}`;
  throw new Problem(400, 'invalid_idempotency_key', { detail });
}

function idOf(req: Request) {
  const result = book.shape.id.safeParse(req.params.id);
  if (!result.success) throw nothingHere();
  return result.data;
}

// Written out, so that the same book has the same tag whatever made the object.
function representationOf({ id, title, author, year }: Book) {
  return JSON.stringify({ id, title, author, year });
}

function tagOf(found: Book) {
  return etagOf(representationOf(found));
}

function sendBook(res: Response, status: number, found: Book) {
  res.setHeader('etag', tagOf(found));
  sendJson(res, status, representationOf(found));
}

function sendJson(res: Response, status: number, json: string) {
  res.setHeader('cache-control', 'no-cache');
  send(res, status, 'application/json', json);
}

function answerStoreFailure(error: unknown, _req: Request, _res: Response, next: (error: unknown) => void) {
  if (error instanceof KeyReused)
    next(
      new Problem(422, 'idempotency_key_reused', { detail: 'This Idempotency-Key belongs to another book.' }),
    );
  else if (error instanceof StoreUnavailable)
    next(
      new Problem(503, 'database_unavailable', {
        headers: { 'retry-after': '1' },
        cause: error.cause ?? error,
      }),
    );
  else next(error);
}
