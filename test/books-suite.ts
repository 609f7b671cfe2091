import { request as send } from 'undici';
import { expectToMatchOpenApi, type HttpResponse } from './openapi';
import { type Environment, type Program, start } from './programs';

// Each request is sent to api and directly to a second api2. Both must send the same response.
let programs: Program[] = [];
let throughApi = '';
let direct = '';

/** Starts api with an api2 behind it, and a second api2 that the tests call directly. */
export async function startBookServices(environment: { behindApi: Environment; direct: Environment }) {
  const behindApi = await start('api2', environment.behindApi);
  const standalone = await start('api2', environment.direct);
  const api = await start('api', { API2_URL: behindApi.url });
  programs = [behindApi, standalone, api];
  throughApi = api.url;
  direct = standalone.url;
}

export async function stopBookServices() {
  for (const program of programs) await program.stop('SIGKILL');
}

interface RequestOptions {
  headers?: Record<string, string>;
  body?: unknown;
}

const COMPARED_HEADERS = [
  'content-type',
  'content-length',
  'etag',
  'location',
  'link',
  'allow',
  'cache-control',
  'retry-after',
];
let requestCount = 0;

async function requestBoth(method: string, path: string, options: RequestOptions = {}) {
  const requestId = `request-${++requestCount}`;
  const [viaApi, viaApi2] = await Promise.all(
    [throughApi, direct].map((url) => sendRequest(url, method, path, requestId, options)),
  );
  if (viaApi === undefined || viaApi2 === undefined) throw new Error('unreachable');
  expectToMatchOpenApi(method, path, viaApi);
  const comparable = (response: HttpResponse) => ({
    status: response.status,
    text: response.text,
    headers: COMPARED_HEADERS.map((name) => [name, response.headers[name]]),
  });
  expect(comparable(viaApi)).toEqual(comparable(viaApi2));
  return { ...viaApi, body: viaApi.text.startsWith('{') ? JSON.parse(viaApi.text) : undefined };
}

async function sendRequest(
  url: string,
  method: string,
  path: string,
  requestId: string,
  { headers, body }: RequestOptions,
) {
  const json =
    body === undefined || typeof body === 'string' || body instanceof Buffer ? body : JSON.stringify(body);
  const type = json === undefined ? {} : { 'content-type': 'application/json' };
  const {
    statusCode,
    headers: responseHeaders,
    body: stream,
  } = await send(url + path, {
    method: method as 'GET',
    headers: { ...type, ...headers, 'x-request-id': requestId },
    ...(json === undefined ? {} : { body: json }),
  });
  return { status: statusCode, headers: responseHeaders, text: await stream.text() };
}

async function createBook(title = 'Emma') {
  return (await requestBoth('POST', '/books', { body: { title, author: 'Jane Austen', year: 1815 } })).body;
}

function expectProblem(
  response: { status: number; body: unknown; headers: HttpResponse['headers'] },
  status: number,
  code: string,
) {
  expect(response).toMatchObject({
    status,
    headers: { 'content-type': 'application/problem+json' },
    body: { status, code, requestId: response.headers['x-request-id'] },
  });
}

/** Tests for everything that the books resource promises, through api and directly. */
export function describeBooksApi() {
  describe('POST /books', () => {
    test('creates a book: 201 with its Location and the book', async () => {
      const response = await requestBoth('POST', '/books', {
        body: { title: ' Emma ', author: 'Jane Austen', year: 1815 },
      });
      const { id } = response.body;
      expect(response).toMatchObject({
        status: 201,
        headers: { location: `/books/${id}`, 'content-type': 'application/json' },
      });
      expect(response.body).toEqual({ id, title: 'Emma', author: 'Jane Austen', year: 1815 });
      expect((await requestBoth('GET', `/books/${id}`)).text).toBe(response.text);
    });

    test.each([
      ['no year', {}, null],
      ['null', { year: null }, null],
      ['-3000', { year: -3000 }, -3000],
      ['3000', { year: 3000 }, 3000],
      ['-0', '{"title":"a","author":"b","year":-0}', 0],
    ])('stores the year %s as %s', async (_case, given, year) => {
      const body = typeof given === 'string' ? given : { title: 'a', author: 'b', ...given };
      const response = await requestBoth('POST', '/books', { body });
      expect(response).toMatchObject({ status: 201, body: { year } });
      expect((await requestBoth('GET', `/books/${response.body.id}`)).body).toMatchObject({ year });
    });

    test.each([
      ['200 emoji', '📚'.repeat(200)],
      ['combining characters', 'é'],
      ['markup', '<b>&amp;"\'</b>'],
      ['SQL', "'); DROP TABLE books; --"],
      ['right-to-left text', 'שלום'],
    ])('returns a title of %s unchanged', async (_case, title) => {
      const response = await requestBoth('POST', '/books', { body: { title, author: 'b' } });
      expect(response).toMatchObject({ status: 201, body: { title } });
      expect((await requestBoth('GET', `/books/${response.body.id}`)).body.title).toBe(title);
    });

    test.each<[string, unknown, string[]]>([
      ['no fields', {}, ['/title', '/author']],
      ['an empty title', { title: '', author: 'b' }, ['/title']],
      ['a title of spaces', { title: ' \t\n', author: 'b' }, ['/title']],
      ['a title of 201 characters', { title: 'x'.repeat(201), author: 'b' }, ['/title']],
      ['a title of 201 emoji', { title: '📚'.repeat(201), author: 'b' }, ['/title']],
      ['a title with U+0000', { title: 'a\0b', author: 'b' }, ['/title']],
      ['a lone surrogate', '{"title":"\\ud83d","author":"b"}', ['/title']],
      ['a title that is a number', { title: 5, author: 'b' }, ['/title']],
      ['an author that is null', { title: 'a', author: null }, ['/author']],
      ['a year before -3000', { title: 'a', author: 'b', year: -3001 }, ['/year']],
      ['a year after 3000', { title: 'a', author: 'b', year: 3001 }, ['/year']],
      ['a fractional year', { title: 'a', author: 'b', year: 1.5 }, ['/year']],
      ['a year that is a string', { title: 'a', author: 'b', year: '1815' }, ['/year']],
      ['unknown fields', { title: 'a', author: 'b', id: '7', 'a/b~c': 1 }, ['/id', '/a~1b~0c']],
      ['__proto__', '{"title":"a","author":"b","__proto__":{}}', ['/__proto__']],
      ['every field invalid', { title: '', year: 'x', more: 1 }, ['/title', '/author', '/year', '/more']],
      ['null', 'null', ['']],
      ['a number', '5', ['']],
      ['a string', '"Emma"', ['']],
      ['an array', '[]', ['']],
    ])('%s: 422 with every validation error', async (_case, body, pointers) => {
      const response = await requestBoth('POST', '/books', { body });
      expectProblem(response, 422, 'invalid_body');
      const errors: { pointer: string; detail: string }[] = response.body.errors;
      expect(errors.map(({ pointer }) => pointer).sort()).toEqual([...pointers].sort());
      for (const { detail } of errors) expect(detail).not.toBe('');
    });

    const book = JSON.stringify({ title: 'a', author: 'b' });
    const overhead = JSON.stringify({ title: 'a', author: 'b', x: '' }).length;
    const filled = (bytes: number) =>
      JSON.stringify({ title: 'a', author: 'b', x: 'y'.repeat(bytes - overhead) });

    test.each<[string, RequestOptions, number, string]>([
      ['malformed JSON', { body: '{"title":' }, 400, 'malformed_json'],
      ['an empty body', { body: '', headers: { 'content-type': 'application/json' } }, 400, 'malformed_json'],
      ['no body', {}, 400, 'malformed_json'],
      [
        'bytes that are not UTF-8',
        { body: Buffer.from('{"title":"\xff","author":"b"}', 'latin1') },
        400,
        'malformed_json',
      ],
      ['gzip', { body: book, headers: { 'content-encoding': 'gzip' } }, 415, 'unsupported_media_type'],
      [
        'text/plain',
        { body: book, headers: { 'content-type': 'text/plain' } },
        415,
        'unsupported_media_type',
      ],
      [
        'application/jsonp',
        { body: book, headers: { 'content-type': 'application/jsonp' } },
        415,
        'unsupported_media_type',
      ],
      ['100,001 bytes', { body: filled(100_001) }, 413, 'content_too_large'],
      ['100,000 bytes', { body: filled(100_000) }, 422, 'invalid_body'],
      ['an empty key', { body: book, headers: { 'idempotency-key': '' } }, 400, 'invalid_idempotency_key'],
      [
        'a long key',
        { body: book, headers: { 'idempotency-key': 'k'.repeat(256) } },
        400,
        'invalid_idempotency_key',
      ],
    ])('rejects %s with a problem document', async (_case, options, status, code) => {
      expectProblem(await requestBoth('POST', '/books', options), status, code);
    });

    test('a repeated idempotency key returns the first response for the same book, and 422 for another', async () => {
      const headers = { 'idempotency-key': 'key-1' };
      const first = await requestBoth('POST', '/books', { headers, body: { title: 'Once', author: 'b' } });
      const repeated = await requestBoth('POST', '/books', {
        headers,
        body: { author: ' b ', title: 'Once', year: null },
      });
      expect(repeated).toMatchObject({ status: 201, text: first.text });
      expect(repeated.headers).toMatchObject({ location: first.headers.location, etag: first.headers.etag });
      const otherBook = await requestBoth('POST', '/books', {
        headers,
        body: { title: 'Twice', author: 'b' },
      });
      expectProblem(otherBook, 422, 'idempotency_key_reused');
      expect((await requestBoth('DELETE', `/books/${first.body.id}`)).status).toBe(204);
      expect(
        await requestBoth('POST', '/books', { headers, body: { title: 'Once', author: 'b' } }),
      ).toMatchObject({
        status: 201,
        text: first.text,
      });
      expect((await requestBoth('GET', `/books/${first.body.id}`)).status).toBe(404);
    });

    test('a rejected request does not consume its idempotency key', async () => {
      const headers = { 'idempotency-key': 'key-2' };
      expectProblem(
        await requestBoth('POST', '/books', { headers, body: { title: '' } }),
        422,
        'invalid_body',
      );
      expect(
        await requestBoth('POST', '/books', { headers, body: { title: 'a', author: 'b' } }),
      ).toMatchObject({
        status: 201,
      });
    });
  });

  describe('GET /books', () => {
    test('pages list all books in order of creation, even if the last book of a page is deleted', async () => {
      for (let i = 0; i < 25; i++) await createBook(`Volume ${i}`);
      const titles: string[] = [];
      let path = '/books?limit=7';
      for (let pages = 0; path !== '' && pages < 50; pages++) {
        const { body, headers } = await requestBoth('GET', path);
        titles.push(...body.items.map(({ title }: { title: string }) => title));
        if (body.next === null) {
          expect(headers).not.toHaveProperty('link');
          path = '';
        } else {
          path = `/books?limit=7&after=${body.next}`;
          expect(headers.link).toBe(`<${path}>; rel="next"`);
          await requestBoth('DELETE', `/books/${body.next}`);
        }
      }
      expect(titles.filter((title) => title.startsWith('Volume'))).toEqual(
        Array.from({ length: 25 }, (_, i) => `Volume ${i}`),
      );
      const { body } = await requestBoth('GET', '/books');
      expect(body.items).toHaveLength(20);
    });

    test.each([
      'limit=0',
      'limit=101',
      'limit=-1',
      'limit=x',
      'limit=',
      'limit=1.5',
      'limit=0x10',
      'limit=1&limit=2',
      'after=x',
      'after=',
      'after=-1',
    ])('?%s: 400', async (query) => {
      expectProblem(await requestBoth('GET', `/books?${query}`), 400, 'invalid_query');
    });

    test.each(['limit=100', 'limit=1', 'after=999999', 'color=red', ''])('?%s: 200', async (query) => {
      expect((await requestBoth('GET', `/books?${query}`)).status).toBe(200);
    });

    test('HEAD returns the headers of GET without a body', async () => {
      const head = await requestBoth('HEAD', '/books?limit=3');
      const get = await requestBoth('GET', '/books?limit=3');
      expect(head).toMatchObject({ status: 200, text: '' });
      expect(head.headers['content-length']).toBe(get.headers['content-length']);
    });
  });

  describe('/books/<id>', () => {
    test('GET returns 200 with an ETag, and 304 if If-None-Match has that ETag', async () => {
      const { id } = await createBook();
      const { etag } = (await requestBoth('GET', `/books/${id}`)).headers;
      expect(etag).toMatch(/^"[\w-]{22}"$/);
      for (const ifNoneMatch of [String(etag), `W/${etag}`, `"other", ${etag}`, '*']) {
        const response = await requestBoth('GET', `/books/${id}`, {
          headers: { 'if-none-match': ifNoneMatch },
        });
        expect(response).toMatchObject({ status: 304, text: '', headers: { etag } });
      }
      for (const ifNoneMatch of ['"other"', 'malformed', String(etag).slice(1, -1)]) {
        const response = await requestBoth('GET', `/books/${id}`, {
          headers: { 'if-none-match': ifNoneMatch },
        });
        expect(response.status).toBe(200);
      }
      expect(
        (await requestBoth('HEAD', `/books/${id}`, { headers: { 'if-none-match': String(etag) } })).status,
      ).toBe(304);
      expectProblem(
        await requestBoth('GET', `/books/${id}`, { headers: { 'if-match': '"other"' } }),
        412,
        'precondition_failed',
      );
    });

    test('PUT returns 200, replaces the complete book and changes its ETag', async () => {
      const { id } = await createBook();
      const before = await requestBoth('GET', `/books/${id}`);
      const put = await requestBoth('PUT', `/books/${id}`, {
        body: { title: 'Persuasion', author: 'Austen' },
      });
      expect(put).toMatchObject({
        status: 200,
        body: { id, title: 'Persuasion', author: 'Austen', year: null },
      });
      expect(put.headers.etag).not.toBe(before.headers.etag);
      expect(await requestBoth('GET', `/books/${id}`)).toMatchObject({
        text: put.text,
        headers: { etag: put.headers.etag },
      });
    });

    test.each(['PUT', 'DELETE'])(
      '%s returns 412 and changes nothing if a precondition fails',
      async (method) => {
        const { id } = await createBook();
        const before = await requestBoth('GET', `/books/${id}`);
        const body = method === 'PUT' ? { body: { title: 'x', author: 'y' } } : {};
        for (const headers of [
          { 'if-match': '"other"' },
          { 'if-match': `W/${before.headers.etag}` },
          { 'if-match': 'malformed' },
          { 'if-none-match': '*' },
        ])
          expectProblem(
            await requestBoth(method, `/books/${id}`, { headers, ...body }),
            412,
            'precondition_failed',
          );
        expect((await requestBoth('GET', `/books/${id}`)).text).toBe(before.text);
        const headers = { 'if-match': `"other", ${before.headers.etag}` };
        expect((await requestBoth(method, `/books/${id}`, { headers, ...body })).status).toBe(
          method === 'PUT' ? 200 : 204,
        );
      },
    );

    test('DELETE returns 204, then 404', async () => {
      const { id } = await createBook();
      expect(await requestBoth('DELETE', `/books/${id}`)).toMatchObject({ status: 204, text: '' });
      expectProblem(await requestBoth('DELETE', `/books/${id}`), 404, 'not_found');
    });

    test.each([
      '999999',
      '0',
      '-1',
      'x',
      '1.5',
      '01',
      '9'.repeat(30),
      '%20',
      '1%00',
      '..%2frespond',
      '..%5crespond',
    ])('/books/%s does not exist: 404', async (id) => {
      const path = `/books/${id}`;
      expectProblem(await requestBoth('GET', path), 404, 'not_found');
      expectProblem(await requestBoth('DELETE', path, { headers: { 'if-match': '*' } }), 404, 'not_found');
      expectProblem(await requestBoth('PUT', path, { body: { title: 'a', author: 'b' } }), 404, 'not_found');
    });

    test('PUT rejects an invalid body with 422, 400, 415 or 413', async () => {
      const { id } = await createBook();
      const path = `/books/${id}`;
      expectProblem(await requestBoth('PUT', path, { body: { title: 'a' } }), 422, 'invalid_body');
      expectProblem(await requestBoth('PUT', path, { body: '{' }), 400, 'malformed_json');
      expectProblem(
        await requestBoth('PUT', path, { body: 'a', headers: { 'content-type': 'text/html' } }),
        415,
        'unsupported_media_type',
      );
      expectProblem(await requestBoth('PUT', path, { body: 'x'.repeat(100_001) }), 413, 'content_too_large');
    });
  });

  test.each([
    ['PATCH', '/books', 'GET, HEAD, POST'],
    ['DELETE', '/books', 'GET, HEAD, POST'],
    ['OPTIONS', '/books', 'GET, HEAD, POST'],
    ['POST', '/books/1', 'GET, HEAD, PUT, DELETE'],
    ['PATCH', '/books/1', 'GET, HEAD, PUT, DELETE'],
  ])('%s %s returns 405 with Allow', async (method, path, allow) => {
    const response = await requestBoth(method, path);
    expectProblem(response, 405, 'method_not_allowed');
    expect(response.headers.allow).toBe(allow);
  });

  test('logs and metrics of both services contain the route template and the name of the next hop', async () => {
    await requestBoth('GET', '/books/1');
    const [behindApi, , api] = programs as [Program, Program, Program];
    const completedRequest = async (program: Program, text: string) => {
      for (let i = 0; i < 100 && !program.output().includes(text); i++)
        await new Promise((resolve) => setTimeout(resolve, 10));
      return program.lines().find(({ requestId }) => requestId === `request-${requestCount}`);
    };
    expect(await completedRequest(api, `request-${requestCount}`)).toMatchObject({
      route: '/books/:id',
      nextHop: 'api2',
      status: expect.any(Number),
    });
    expect(await completedRequest(behindApi, `request-${requestCount}`)).toMatchObject({
      route: '/books/:id',
    });
    const metrics = await (await send(`${api.adminUrl}/metrics`)).body.text();
    expect(metrics).toContain(
      'http_server_request_duration_seconds_count{method="PUT",route="/books/:id",status="200"}',
    );
    expect(metrics).toContain(
      'http_client_request_duration_seconds_count{next_hop="api2",status="201",error=""}',
    );
    expect(metrics).not.toContain('/books/1');
  });
}
