import { type Request, type RequestHandler, type Response, Router } from 'express';
import { jsonBody, validateBody } from '../../chassis/http/json-body';
import { checkPreconditions, etagOf, isNotModified } from '../../chassis/http/preconditions';
import { methodNotAllowed, notFoundProblem, Problem } from '../../chassis/http/problem';
import { queryOf } from '../../chassis/http/request-target';
import { send } from '../../chassis/http/send';
import { type Book, book, bookQuery, idempotencyKey, newBook } from '../../contract/books';
import { type BookStore, IdempotencyKeyReusedError, StoreUnavailableError } from './book-store';

/** The routes of `/books`, with the books in `store`. `checks` run first. */
export function books(store: BookStore, checks: readonly RequestHandler[] = []): Router {
  const routes = Router();
  routes
    .route('/books')
    .get(...checks, list(store))
    .post(...checks, jsonBody(), create(store))
    .all(methodNotAllowed('GET', 'HEAD', 'POST'));
  routes
    .route('/books/:id')
    .get(...checks, read(store))
    .put(...checks, jsonBody(), replace(store))
    .delete(...checks, remove(store))
    .all(methodNotAllowed('GET', 'HEAD', 'PUT', 'DELETE'));
  routes.use(storeErrorToProblem);
  return routes;
}

function list(store: BookStore): RequestHandler {
  return async function list(req, res) {
    const { limit, after } = parsePageQuery(req);
    // One extra book shows whether there is a next page.
    const found = await store.list(limit + 1, after);
    const items = found.slice(0, limit);
    const next = found.length > limit ? (items.at(-1) as Book).id : null;
    if (next !== null) res.setHeader('link', `</books?limit=${limit}&after=${next}>; rel="next"`);
    sendJson(res, 200, JSON.stringify({ items, next }));
  };
}

function create(store: BookStore): RequestHandler {
  return async function create(req, res) {
    const key = parseIdempotencyKey(req);
    const created = await store.create(validateBody(newBook, req.body), key);
    res.setHeader('location', `/books/${created.id}`);
    sendBook(res, 201, created);
  };
}

function read(store: BookStore): RequestHandler {
  return async function read(req, res) {
    const found = await store.get(parseId(req));
    if (found === undefined) throw notFoundProblem();
    if (!isNotModified(req.headers, etagOfBook(found))) return sendBook(res, 200, found);
    res.setHeader('etag', etagOfBook(found));
    res.setHeader('cache-control', 'no-cache');
    res.status(304).end();
  };
}

function replace(store: BookStore): RequestHandler {
  return async function replace(req, res) {
    const id = parseId(req);
    const replacement = validateBody(newBook, req.body);
    const exists = await store.change(id, (current) => {
      checkPreconditions(req.headers, etagOfBook(current));
      return replacement;
    });
    if (!exists) throw notFoundProblem();
    sendBook(res, 200, { id, ...replacement });
  };
}

function remove(store: BookStore): RequestHandler {
  return async function remove(req, res) {
    const exists = await store.change(parseId(req), (current) => {
      checkPreconditions(req.headers, etagOfBook(current));
      return undefined;
    });
    if (!exists) throw notFoundProblem();
    res.status(204).end();
  };
}

function parsePageQuery(req: Request) {
  const query = new URLSearchParams(queryOf(req));
  const parameter = (name: string) => (query.has(name) ? query.getAll(name).join() : undefined);
  const result = bookQuery.safeParse({ limit: parameter('limit'), after: parameter('after') });
  if (result.success) return result.data;
  const errors = result.error.issues.map(({ path, message }) => `${String(path[0])}: ${message}`);
  throw new Problem(400, 'invalid_query', { detail: errors.join(' ') });
}

function parseIdempotencyKey(req: Request) {
  const key = req.headers['idempotency-key'];
  if (key === undefined) return undefined;
  const result = idempotencyKey.safeParse(key);
  if (result.success) return result.data;
  const detail = `Idempotency-Key: ${result.error.issues.map(({ message }) => message).join(' ')}`;
  throw new Problem(400, 'invalid_idempotency_key', { detail });
}

function parseId(req: Request) {
  const result = book.shape.id.safeParse(req.params.id);
  if (!result.success) throw notFoundProblem();
  return result.data;
}

// The fixed order of the fields gives equal books equal ETags.
function serialize({ id, title, author, year }: Book) {
  return JSON.stringify({ id, title, author, year });
}

function etagOfBook(found: Book) {
  return etagOf(serialize(found));
}

function sendBook(res: Response, status: number, found: Book) {
  res.setHeader('etag', etagOfBook(found));
  sendJson(res, status, serialize(found));
}

function sendJson(res: Response, status: number, json: string) {
  res.setHeader('cache-control', 'no-cache');
  send(res, status, 'application/json', json);
}

function storeErrorToProblem(error: unknown, _req: Request, _res: Response, next: (error: unknown) => void) {
  if (error instanceof IdempotencyKeyReusedError)
    next(
      new Problem(422, 'idempotency_key_reused', {
        detail: 'This Idempotency-Key was already used for another book.',
      }),
    );
  else if (error instanceof StoreUnavailableError)
    next(
      new Problem(503, 'database_unavailable', {
        headers: { 'retry-after': '1' },
        cause: error.cause ?? error,
      }),
    );
  else next(error);
}
