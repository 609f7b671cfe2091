import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import Ajv, { type ValidateFunction } from 'ajv/dist/2020';
import request from 'supertest';
import { newBook } from '../contract/books';
import { createDocument } from '../services/api/openapi-document';
import { createTestApi } from './app-under-test';
import { expectToMatchOpenApi } from './openapi';
import { type Program, start } from './programs';
import { closedPort, httpUpstream } from './stub-upstream';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});

/** Builds api with one stub as api2 and as the external API. Without a listener, connections to it are refused. */
async function createApp(listener?: RequestListener, maxInFlight?: number) {
  const upstream = listener && (await httpUpstream(listener));
  const origin = upstream?.origin ?? `http://127.0.0.1:${await closedPort()}`;
  const api = createTestApi(origin, {}, maxInFlight);
  cleanups.push(
    () => api.api2.close(),
    () => api.external.close(),
    () => upstream?.close(),
  );
  return api.app;
}

test('redocly reports no problems in the served document with its recommended rules', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'openapi.json');
  writeFileSync(
    file,
    (
      await request(await createApp())
        .get('/openapi.json')
        .expect(200)
    ).text,
  );
  // The temporary folder has no configuration that could weaken the rules. Telemetry and update checks are off.
  const env = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  const cli = join(process.cwd(), 'node_modules/@redocly/cli/bin/cli.js');
  const args = [cli, 'lint', file, '--format=json'];
  const { stdout } = await promisify(execFile)(process.execPath, args, { cwd: folder, env }).catch(
    (failure: { stdout: string }) => failure,
  );
  expect(JSON.parse(stdout)).toMatchObject({ problems: [] });
});

describe('the document describes the real responses', () => {
  const json: RequestListener = (_req, res) =>
    void res.writeHead(200, { 'content-type': 'application/json' }).end('{}');
  const unavailable: RequestListener = (_req, res) => void res.writeHead(503).end();

  test.each<[string, string, string, number, RequestListener | undefined]>([
    ['GET', '/hello', 'when api2 responds', 200, json],
    ['GET', '/hello', 'when api2 responds 503', 500, unavailable],
    ['GET', '/hello', 'when the connection is refused', 500, undefined],
    ['POST', '/hello', 'which is not allowed', 405, undefined],
    ['GET', '/data', 'when the external API responds', 200, json],
    ['HEAD', '/data', 'when the external API responds', 200, json],
    ['GET', '/data', 'when the external API responds 503', 502, unavailable],
    ['GET', '/data', 'when the connection is refused', 502, undefined],
    ['GET', '/data', 'when the external API does not respond', 504, () => {}],
    ['GET', '/books', 'when the connection is refused', 502, undefined],
    ['GET', '/books', 'when api2 does not respond', 504, () => {}],
    ['GET', '/books/%zz', 'which is malformed', 400, undefined],
    ['GET', '/openapi.json', 'always', 200, undefined],
    ['PUT', '/openapi.json', 'which is not allowed', 405, undefined],
  ])('%s %s %s: %i', async (method, path, _when, status, listener) => {
    const app = await createApp(listener);
    const response = await request(app)[method.toLowerCase() as 'get'](path);
    expect(response.status).toBe(status);
    expectToMatchOpenApi(method, path, { ...response, text: response.text ?? '' });
  });

  test.each(['/hello', '/data', '/books', '/books/1', '/openapi.json'])(
    'GET %s when too many requests are in flight: 503',
    async (path) => {
      const response = await request(await createApp(undefined, 0)).get(path);
      expect(response.status).toBe(503);
      expectToMatchOpenApi('GET', path, response);
    },
  );
});

describe('the schema NewBook accepts exactly the books that the service accepts', () => {
  let api2: Program;
  const { schemas } = createDocument().components;
  // JSON Schema recommends the flag `u` for patterns, but not every validator sets it.
  const validators: ValidateFunction[] = [true, false].map((unicodeRegExp) => {
    const ajv = new Ajv({ strict: false, unicodeRegExp });
    ajv.addSchema({ $id: 'openapi', components: { schemas } });
    return ajv.compile({ $ref: 'openapi#/components/schemas/NewBook' });
  });

  beforeAll(async () => {
    api2 = await start('api2');
  });
  afterAll(() => api2.stop('SIGKILL'));

  const wide = '\u{1f4da}';
  const titles: [string, string, boolean][] = [
    ['one character', 'a', true],
    ['two characters', 'ab', true],
    ['whitespace inside', 'a \n\t b', true],
    ['200 characters', 'x'.repeat(200), true],
    ['201 characters', 'x'.repeat(201), false],
    ['200 characters, padded', `${' '.repeat(300)}${'x'.repeat(200)}\t\r\n`, true],
    ['201 characters, padded', ` ${'x'.repeat(201)} `, false],
    ['200 characters, 198 of them inner spaces', `a${' '.repeat(198)}b`, true],
    ['201 characters, 199 of them inner spaces', `a${' '.repeat(199)}b`, false],
    ['200 astral characters', wide.repeat(200), true],
    ['201 astral characters', wide.repeat(201), false],
    ['200 astral characters, padded', ` ${wide.repeat(200)} `, true],
    ['101 astral and 100 other characters', wide.repeat(101) + 'x'.repeat(100), false],
    ['no-break space and byte order mark around', '\u00a0\ufeffa\u2003\u3000', true],
    ['a zero-width space, which is not whitespace', '\u200b', true],
    ['empty', '', false],
    ['whitespace only', ' \t\r\n\u00a0\ufeff\u2028', false],
    ['40,000 spaces', ' '.repeat(40_000), false],
    ['40,000 spaces between two letters', `a${' '.repeat(40_000)}b`, false],
    ['U+0000', 'a\0b', false],
    ['U+0000 alone', '\0', false],
    ['U+0000 at the end', 'a\0', false],
    ['other control characters', '\x01\x1f\x7f', true],
    ['a lone high surrogate', 'a\ud83d', false],
    ['a lone low surrogate', '\ude00a', false],
    ['surrogates in the wrong order', '\ude00\ud83d', false],
    ['a lone surrogate after a pair', `${wide}\ud83d`, false],
  ];
  const bodies: [string, string, boolean][] = [
    ...titles.map(([description, text, isValid]): [string, string, boolean] => [
      `a title and an author of ${description}`,
      JSON.stringify({ title: text, author: text }),
      isValid,
    ]),
    ['no title', '{"author":"b"}', false],
    ['a title that is a number', '{"title":1,"author":"b"}', false],
    ['a title that is null', '{"title":null,"author":"b"}', false],
    ...(
      [
        ['null', true],
        ['-3000', true],
        ['3000', true],
        ['-3001', false],
        ['3001', false],
        ['-0', true],
        ['1815.0', true],
        ['1e3', true],
        ['1815.5', false],
        ['1e400', false],
        ['"1815"', false],
        ['true', false],
      ] as const
    ).map(([year, isValid]): [string, string, boolean] => [
      `the year ${year}`,
      `{"title":"a","author":"b","year":${year}}`,
      isValid,
    ]),
    ['an unknown field', '{"title":"a","author":"b","pages":1}', false],
    ['an id', '{"title":"a","author":"b","id":"1"}', false],
    ['a field __proto__', '{"title":"a","author":"b","__proto__":{}}', false],
    ['null', 'null', false],
    ['an array', '[]', false],
    ['a string', '"book"', false],
  ];

  test.each(bodies)('%s', async (_case, body, isValid) => {
    const response = await fetch(`${api2.url}/books`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    expect(response.status).toBe(isValid ? 201 : 422);
    const book: unknown = JSON.parse(body);
    expect(validators.map((validate) => validate(book))).toEqual([isValid, isValid]);
  });

  test('the year is optional in a request and required in a response', () => {
    expect(newBook.parse({ title: 'a', author: 'b' })).toEqual({ title: 'a', author: 'b', year: null });
    expect(schemas).toMatchObject({
      NewBook: { required: ['title', 'author'] },
      NewBookYear: { default: null },
      Book: { required: ['id', 'title', 'author', 'year'] },
    });
  });
});
