import { request as send } from 'undici';
import { type Answer, holdToOpenApi } from './openapi';
import { type Environment, type Program, start } from './programs';

// The same requests go to api, and to an api2 of its own directly: whatever a test sees of the one, the other answered too.
let programs: Program[] = [];
let throughApi = '';
let direct = '';

/** Starts the three programs that the suite is run against. */
export async function startBooks(environment: { behind: Environment; direct: Environment }) {
  const behind = await start('api2', environment.behind);
  const alone = await start('api2', environment.direct);
  const api = await start('api', { API2_URL: behind.url });
  programs = [behind, alone, api];
  throughApi = api.url;
  direct = alone.url;
}

export async function stopBooks() {
  for (const program of programs) await program.stop('SIGKILL');
}

interface Options {
  headers?: Record<string, string>;
  body?: unknown;
}

const COMPARED = [
  'content-type',
  'content-length',
  'etag',
  'location',
  'link',
  'allow',
  'cache-control',
  'retry-after',
];
let asked = 0;

async function both(method: string, path: string, options: Options = {}) {
  const requestId = `request-${++asked}`;
  const [one, other] = await Promise.all(
    [throughApi, direct].map((url) => ask(url, method, path, requestId, options)),
  );
  if (one === undefined || other === undefined) throw new Error('unreachable');
  holdToOpenApi(method, path, one);
  const compared = (answer: Answer) => ({
    status: answer.status,
    text: answer.text,
    headers: COMPARED.map((name) => [name, answer.headers[name]]),
  });
  expect(compared(one)).toEqual(compared(other));
  return { ...one, body: one.text.startsWith('{') ? JSON.parse(one.text) : undefined };
}

async function ask(url: string, method: string, path: string, requestId: string, { headers, body }: Options) {
  const json =
    body === undefined || typeof body === 'string' || body instanceof Buffer ? body : JSON.stringify(body);
  const type = json === undefined ? {} : { 'content-type': 'application/json' };
  const {
    statusCode,
    headers: answered,
    body: stream,
  } = await send(url + path, {
    method: method as 'GET',
    headers: { ...type, ...headers, 'x-request-id': requestId },
    ...(json === undefined ? {} : { body: json }),
  });
  return { status: statusCode, headers: answered, text: await stream.text() };
}

async function added(title = 'Emma') {
  return (await both('POST', '/books', { body: { title, author: 'Jane Austen', year: 1815 } })).body;
}

function expectProblem(
  answer: { status: number; body: unknown; headers: Answer['headers'] },
  status: number,
  code: string,
) {
  expect(answer).toMatchObject({
    status,
    headers: { 'content-type': 'application/problem+json' },
    body: { status, code, requestId: answer.headers['x-request-id'] },
  });
}

/** Every line of what the resource promises, asked of both. */
export function describeBooks() {
  describe('POST /books', () => {
    test('a book: 201, its place, and the book', async () => {
      const answer = await both('POST', '/books', {
        body: { title: ' Emma ', author: 'Jane Austen', year: 1815 },
      });
      const { id } = answer.body;
      expect(answer).toMatchObject({
        status: 201,
        headers: { location: `/books/${id}`, 'content-type': 'application/json' },
      });
      expect(answer.body).toEqual({ id, title: 'Emma', author: 'Jane Austen', year: 1815 });
      expect((await both('GET', `/books/${id}`)).text).toBe(answer.text);
    });

    test.each([
      ['no year', {}, null],
      ['null', { year: null }, null],
      ['-3000', { year: -3000 }, -3000],
      ['3000', { year: 3000 }, 3000],
      ['-0', '{"title":"a","author":"b","year":-0}', 0],
    ])('the year %s is kept as %s', async (_what, given, year) => {
      const body = typeof given === 'string' ? given : { title: 'a', author: 'b', ...given };
      const answer = await both('POST', '/books', { body });
      expect(answer).toMatchObject({ status: 201, body: { year } });
      expect((await both('GET', `/books/${answer.body.id}`)).body).toMatchObject({ year });
    });

    test.each([
      ['200 emoji', '📚'.repeat(200)],
      ['combining characters', 'é'],
      ['markup', '<b>&amp;"\'</b>'],
      ['SQL', "'); DROP TABLE books; --"],
      ['right to left', 'שלום'],
    ])('a title of %s comes back as it was', async (_what, title) => {
      const answer = await both('POST', '/books', { body: { title, author: 'b' } });
      expect(answer).toMatchObject({ status: 201, body: { title } });
      expect((await both('GET', `/books/${answer.body.id}`)).body.title).toBe(title);
    });

    test.each<[string, unknown, string[]]>([
      ['no fields', {}, ['/title', '/author']],
      ['an empty title', { title: '', author: 'b' }, ['/title']],
      ['a title of spaces', { title: ' \t\n', author: 'b' }, ['/title']],
      ['a title of 201 characters', { title: 'x'.repeat(201), author: 'b' }, ['/title']],
      ['a title of 201 emoji', { title: '📚'.repeat(201), author: 'b' }, ['/title']],
      ['a title with U+0000', { title: 'a\0b', author: 'b' }, ['/title']],
      ['half an emoji', '{"title":"\\ud83d","author":"b"}', ['/title']],
      ['a title that is a number', { title: 5, author: 'b' }, ['/title']],
      ['an author that is null', { title: 'a', author: null }, ['/author']],
      ['a year before -3000', { title: 'a', author: 'b', year: -3001 }, ['/year']],
      ['a year after 3000', { title: 'a', author: 'b', year: 3001 }, ['/year']],
      ['half a year', { title: 'a', author: 'b', year: 1.5 }, ['/year']],
      ['a year as text', { title: 'a', author: 'b', year: '1815' }, ['/year']],
      ['unknown fields', { title: 'a', author: 'b', id: '7', 'a/b~c': 1 }, ['/id', '/a~1b~0c']],
      ['__proto__', '{"title":"a","author":"b","__proto__":{}}', ['/__proto__']],
      ['everything wrong', { title: '', year: 'x', more: 1 }, ['/title', '/author', '/year', '/more']],
      ['null', 'null', ['']],
      ['a number', '5', ['']],
      ['a text', '"Emma"', ['']],
      ['a list', '[]', ['']],
    ])('%s: 422 with every fault', async (_what, body, pointers) => {
      const answer = await both('POST', '/books', { body });
      expectProblem(answer, 422, 'invalid_body');
      const errors: { pointer: string; detail: string }[] = answer.body.errors;
      expect(errors.map(({ pointer }) => pointer).sort()).toEqual([...pointers].sort());
      for (const { detail } of errors) expect(detail).not.toBe('');
    });

    const book = JSON.stringify({ title: 'a', author: 'b' });
    const overhead = JSON.stringify({ title: 'a', author: 'b', x: '' }).length;
    const filled = (bytes: number) =>
      JSON.stringify({ title: 'a', author: 'b', x: 'y'.repeat(bytes - overhead) });

    test.each<[string, Options, number, string]>([
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
    ])('%s: a problem', async (_what, options, status, code) => {
      expectProblem(await both('POST', '/books', options), status, code);
    });

    test('the same key with the same book gives the first answer again, with another book 422', async () => {
      const headers = { 'idempotency-key': 'key-1' };
      const first = await both('POST', '/books', { headers, body: { title: 'Once', author: 'b' } });
      const again = await both('POST', '/books', {
        headers,
        body: { author: ' b ', title: 'Once', year: null },
      });
      expect(again).toMatchObject({ status: 201, text: first.text });
      expect(again.headers).toMatchObject({ location: first.headers.location, etag: first.headers.etag });
      const other = await both('POST', '/books', { headers, body: { title: 'Twice', author: 'b' } });
      expectProblem(other, 422, 'idempotency_key_reused');
      expect((await both('DELETE', `/books/${first.body.id}`)).status).toBe(204);
      expect(await both('POST', '/books', { headers, body: { title: 'Once', author: 'b' } })).toMatchObject({
        status: 201,
        text: first.text,
      });
      expect((await both('GET', `/books/${first.body.id}`)).status).toBe(404);
    });

    test('a refused request does not use its key up', async () => {
      const headers = { 'idempotency-key': 'key-2' };
      expectProblem(await both('POST', '/books', { headers, body: { title: '' } }), 422, 'invalid_body');
      expect(await both('POST', '/books', { headers, body: { title: 'a', author: 'b' } })).toMatchObject({
        status: 201,
      });
    });
  });

  describe('GET /books', () => {
    test('all books can be reached, in order of creation, page by page, also when one was deleted', async () => {
      for (let i = 0; i < 25; i++) await added(`Volume ${i}`);
      const titles: string[] = [];
      let path = '/books?limit=7';
      for (let pages = 0; path !== '' && pages < 50; pages++) {
        const { body, headers } = await both('GET', path);
        titles.push(...body.items.map(({ title }: { title: string }) => title));
        if (body.next === null) {
          expect(headers).not.toHaveProperty('link');
          path = '';
        } else {
          path = `/books?limit=7&after=${body.next}`;
          expect(headers.link).toBe(`<${path}>; rel="next"`);
          await both('DELETE', `/books/${body.next}`);
        }
      }
      expect(titles.filter((title) => title.startsWith('Volume'))).toEqual(
        Array.from({ length: 25 }, (_, i) => `Volume ${i}`),
      );
      const { body } = await both('GET', '/books');
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
      expectProblem(await both('GET', `/books?${query}`), 400, 'invalid_query');
    });

    test.each(['limit=100', 'limit=1', 'after=999999', 'color=red', ''])('?%s: 200', async (query) => {
      expect((await both('GET', `/books?${query}`)).status).toBe(200);
    });

    test('HEAD has the headers of GET and no body', async () => {
      const head = await both('HEAD', '/books?limit=3');
      const get = await both('GET', '/books?limit=3');
      expect(head).toMatchObject({ status: 200, text: '' });
      expect(head.headers['content-length']).toBe(get.headers['content-length']);
    });
  });

  describe('/books/<id>', () => {
    test('GET: 200 with an ETag; 304 when that is known', async () => {
      const { id } = await added();
      const { etag } = (await both('GET', `/books/${id}`)).headers;
      expect(etag).toMatch(/^"[\w-]{22}"$/);
      for (const known of [String(etag), `W/${etag}`, `"other", ${etag}`, '*']) {
        const answer = await both('GET', `/books/${id}`, { headers: { 'if-none-match': known } });
        expect(answer).toMatchObject({ status: 304, text: '', headers: { etag } });
      }
      for (const known of ['"other"', 'malformed', String(etag).slice(1, -1)]) {
        const answer = await both('GET', `/books/${id}`, { headers: { 'if-none-match': known } });
        expect(answer.status).toBe(200);
      }
      expect(
        (await both('HEAD', `/books/${id}`, { headers: { 'if-none-match': String(etag) } })).status,
      ).toBe(304);
      expectProblem(
        await both('GET', `/books/${id}`, { headers: { 'if-match': '"other"' } }),
        412,
        'precondition_failed',
      );
    });

    test('PUT: 200, the whole book replaced, with another ETag', async () => {
      const { id } = await added();
      const before = await both('GET', `/books/${id}`);
      const put = await both('PUT', `/books/${id}`, { body: { title: 'Persuasion', author: 'Austen' } });
      expect(put).toMatchObject({
        status: 200,
        body: { id, title: 'Persuasion', author: 'Austen', year: null },
      });
      expect(put.headers.etag).not.toBe(before.headers.etag);
      expect(await both('GET', `/books/${id}`)).toMatchObject({
        text: put.text,
        headers: { etag: put.headers.etag },
      });
    });

    test.each(['PUT', 'DELETE'])(
      '%s with an If-Match that does not: 412, and nothing is changed',
      async (method) => {
        const { id } = await added();
        const before = await both('GET', `/books/${id}`);
        const body = method === 'PUT' ? { body: { title: 'x', author: 'y' } } : {};
        for (const headers of [
          { 'if-match': '"other"' },
          { 'if-match': `W/${before.headers.etag}` },
          { 'if-match': 'malformed' },
          { 'if-none-match': '*' },
        ])
          expectProblem(await both(method, `/books/${id}`, { headers, ...body }), 412, 'precondition_failed');
        expect((await both('GET', `/books/${id}`)).text).toBe(before.text);
        const headers = { 'if-match': `"other", ${before.headers.etag}` };
        expect((await both(method, `/books/${id}`, { headers, ...body })).status).toBe(
          method === 'PUT' ? 200 : 204,
        );
      },
    );

    test('DELETE: 204, then 404', async () => {
      const { id } = await added();
      expect(await both('DELETE', `/books/${id}`)).toMatchObject({ status: 204, text: '' });
      expectProblem(await both('DELETE', `/books/${id}`), 404, 'not_found');
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
    ])('nothing is at /books/%s: 404', async (id) => {
      const path = `/books/${id}`;
      expectProblem(await both('GET', path), 404, 'not_found');
      expectProblem(await both('DELETE', path, { headers: { 'if-match': '*' } }), 404, 'not_found');
      expectProblem(await both('PUT', path, { body: { title: 'a', author: 'b' } }), 404, 'not_found');
    });

    test('PUT of what is no book: 422, 400, 415, 413', async () => {
      const { id } = await added();
      const path = `/books/${id}`;
      expectProblem(await both('PUT', path, { body: { title: 'a' } }), 422, 'invalid_body');
      expectProblem(await both('PUT', path, { body: '{' }), 400, 'malformed_json');
      expectProblem(
        await both('PUT', path, { body: 'a', headers: { 'content-type': 'text/html' } }),
        415,
        'unsupported_media_type',
      );
      expectProblem(await both('PUT', path, { body: 'x'.repeat(100_001) }), 413, 'content_too_large');
    });
  });

  test.each([
    ['PATCH', '/books', 'GET, HEAD, POST'],
    ['DELETE', '/books', 'GET, HEAD, POST'],
    ['OPTIONS', '/books', 'GET, HEAD, POST'],
    ['POST', '/books/1', 'GET, HEAD, PUT, DELETE'],
    ['PATCH', '/books/1', 'GET, HEAD, PUT, DELETE'],
  ])('%s %s: 405 with Allow', async (method, path, allow) => {
    const answer = await both(method, path);
    expectProblem(answer, 405, 'method_not_allowed');
    expect(answer.headers.allow).toBe(allow);
  });

  test('the logs and metrics of both name the route by its template, and the next hop by its name', async () => {
    await both('GET', '/books/1');
    const [behind, , api] = programs as [Program, Program, Program];
    const wrote = async (program: Program, text: string) => {
      for (let i = 0; i < 100 && !program.output().includes(text); i++)
        await new Promise((resolve) => setTimeout(resolve, 10));
      return program.lines().find(({ requestId }) => requestId === `request-${asked}`);
    };
    expect(await wrote(api, `request-${asked}`)).toMatchObject({
      route: '/books/:id',
      nextHop: 'api2',
      status: expect.any(Number),
    });
    expect(await wrote(behind, `request-${asked}`)).toMatchObject({ route: '/books/:id' });
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
