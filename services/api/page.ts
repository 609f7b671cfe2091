import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type RequestHandler, Router } from 'express';
import { etagOf, isNotModified } from '../../chassis/http/preconditions';
import { methodNotAllowed } from '../../chassis/http/problem';
import { send } from '../../chassis/http/send';

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
  'attempts.js',
  'explanation.js',
  'ten-at-once.js',
  'errors.js',
  'diagram.js',
  'history.js',
  'books.js',
  'book-form.js',
  'idempotency-key.js',
  'undo.js',
];

const CONTENT_SECURITY_POLICY = [
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

// No header here requires HTTPS, because the page is also used over plain HTTP on a local address.
const HEADERS = {
  'content-security-policy': CONTENT_SECURITY_POLICY,
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  // The file names have no version, so browsers must revalidate each file on every use.
  'cache-control': 'no-cache',
};

// When running from source, read files on every request so that edits show on reload.
const RUNS_FROM_SOURCE = __filename.endsWith('.ts');

/**
 * Serves the page at `/` and its files. When built, reads them once, at startup.
 * @param faults whether the page offers `x-fault`
 */
export function page(faults: boolean): Router {
  const router = Router();
  for (const name of FILES) {
    const path = name === 'index.html' ? '/' : `/${name}`;
    router.route(path).get(serveFile(name, faults)).all(methodNotAllowed('GET', 'HEAD'));
  }
  return router;
}

function serveFile(name: string, faults: boolean): RequestHandler {
  const path = locate(name);
  const fileAtStartup = read(path, faults);
  const type = TYPES[name.split('.').at(-1) as string] as string;
  return function serveFile(req, res) {
    const { content, etag } = RUNS_FROM_SOURCE ? read(path, faults) : fileAtStartup;
    for (const [header, value] of Object.entries(HEADERS)) res.setHeader(header, value);
    res.setHeader('etag', etag);
    res.locals.record.setTimingHeaders();
    if (isNotModified(req.headers, etag)) return void res.status(304).end();
    send(res, 200, type, content);
  };
}

// The ETag is that of the text after the replacement, so it changes with the setting.
function read(path: string, faults: boolean) {
  const text = readFileSync(path, 'utf8');
  const content = faults ? text.replace('<html', '<html data-faults') : text;
  return { content, etag: etagOf(content) };
}

// When built, all files are next to this one. When running from source, the compiled scripts are in dist.
function locate(name: string) {
  const adjacent = join(__dirname, 'page', name);
  return existsSync(adjacent) ? adjacent : join('dist', 'services', 'api', 'page', name);
}
