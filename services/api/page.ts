import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type RequestHandler, Router } from 'express';
import { etagOf, isNotModified } from '../../chassis/preconditions';
import { methodNotAllowed } from '../../chassis/problem';
import { send } from '../../chassis/send';

const TYPES: Readonly<Record<string, string>> = {
  html: 'text/html; charset=utf-8',
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  svg: 'image/svg+xml',
};

const FILES = [
  'index.html',
  'page.css',
  'icon.svg',
  'page.js',
  'request.js',
  'response.js',
  'errors.js',
  'diagram.js',
  'history.js',
  'books.js',
  'book-form.js',
  'idempotency-key.js',
  'undo.js',
];

const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
].join('; ');

// Nothing that would need HTTPS: the page is also used over plain HTTP, on a local address.
const HEADERS = {
  'content-security-policy': POLICY,
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  // Its files have no version in their names, so each use asks whether they still hold.
  'cache-control': 'no-cache',
};

// When running from source, read files on every request so that edits show on reload.
const FROM_SOURCE = __filename.endsWith('.ts');

/** Serves the page at `/` and its files. In a build, they are read once, at startup. */
export function page(): Router {
  const router = Router();
  for (const name of FILES) {
    const path = name === 'index.html' ? '/' : `/${name}`;
    router.route(path).get(file(name)).all(methodNotAllowed('GET', 'HEAD'));
  }
  return router;
}

function file(name: string): RequestHandler {
  const path = locate(name);
  const atStart = read(path);
  const type = TYPES[name.split('.').at(-1) as string] as string;
  return function file(req, res) {
    const { content, etag } = FROM_SOURCE ? read(path) : atStart;
    for (const [header, value] of Object.entries(HEADERS)) res.setHeader(header, value);
    res.setHeader('etag', etag);
    res.setHeader('server-timing', res.locals.record.serverTiming());
    if (isNotModified(req.headers, etag)) return void res.status(304).end();
    send(res, 200, type, content);
  };
}

function read(path: string) {
  const content = readFileSync(path, 'utf8');
  return { content, etag: etagOf(content) };
}

// Once built, all files are beside this one. In the source tree the scripts are missing there: tsc writes them to dist.
function locate(name: string) {
  const beside = join(__dirname, 'page', name);
  return existsSync(beside) ? beside : join('dist', 'services', 'api', 'page', name);
}
