import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type RequestHandler, Router } from 'express';
import { etagOf, isNotModified } from '../../chassis/preconditions';
import { methodNotAllowed } from '../../chassis/problem';

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
  'answer.js',
  'ask.js',
  'causes.js',
  'picture.js',
  'journal.js',
  'books.js',
  'book-form.js',
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
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  // Its files have no version in their names, so each use asks whether they still hold.
  'cache-control': 'no-cache',
};

/** The page at `/` and its files, read once. */
export function page(): Router {
  const folder = builtFolder();
  const router = Router();
  for (const name of FILES) {
    const path = name === 'index.html' ? '/' : `/${name}`;
    router.route(path).get(file(folder, name)).all(methodNotAllowed('GET', 'HEAD'));
  }
  return router;
}

function file(folder: string, name: string): RequestHandler {
  const content = readFileSync(join(folder, name), 'utf8');
  const etag = etagOf(content);
  const type = TYPES[name.split('.').at(-1) as string] as string;
  return function file(req, res) {
    for (const [header, value] of Object.entries(HEADERS)) res.setHeader(header, value);
    res.setHeader('etag', etag);
    res.setHeader('server-timing', res.locals.record.serverTiming());
    if (isNotModified(req.headers, etag)) return void res.status(304).end();
    res.setHeader('content-type', type);
    res.setHeader('content-length', Buffer.byteLength(content));
    res.end(content);
  };
}

// What runs from source finds the scripts where the build has put them.
function builtFolder() {
  const beside = join(__dirname, 'page');
  return existsSync(join(beside, 'page.js')) ? beside : join('dist', 'services', 'api', 'page');
}
