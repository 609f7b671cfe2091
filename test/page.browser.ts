/// <reference lib="dom" />
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Browser, type BrowserContext, chromium, type Page, type Route } from 'playwright-core';
import { request } from 'undici';
import { createTestApi } from './app-under-test';
import { type Program, programStarter } from './programs';
import { httpUpstream, type StubUpstream } from './stub-upstream';

const started = programStarter();
const axe = readFileSync(createRequire(__filename).resolve('axe-core/axe.min.js'), 'utf8');

const CHROMIUM = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
  ],
};

let browser: Browser;
let context: BrowserContext;
let page: Page;
let api: Program;
let api2: Program;
let external: StubUpstream;
let problems: string[];
/** Requests that the page has sent to the routes of api since it was opened. */
let sent: string[];

jest.setTimeout(30_000);

beforeAll(async () => {
  browser = await chromium.launch(CHROMIUM);
  external = await httpUpstream((_req, res) => {
    res
      .writeHead(200, { 'content-type': 'application/json', 'cache-control': 'max-age=60' })
      .end('{"from":"outside"}');
  });
});

afterAll(async () => {
  await browser.close();
  await external.close();
});

beforeEach(async () => {
  api2 = await started('api2', { FAULTS: 'on' });
  api = await started('api', {
    API2_URL: api2.url,
    FAULTS: 'on',
    EXTERNAL_URL: `${external.origin}/data.json`,
  });
  await openPage({});
});

afterEach(() => context.close());

/** Opens the page in a new browser context. */
async function openPage(options: Parameters<Browser['newContext']>[0]) {
  await context?.close();
  await openIn(await browser.newContext({ viewport: { width: 1000, height: 900 }, ...options }));
}

/** Opens the page and records its requests and its problems: requests to other hosts and errors. */
async function openIn(opened: BrowserContext) {
  problems = [];
  sent = [];
  context = opened;
  page = await context.newPage();
  page.on('request', (outgoing) => {
    const { pathname, search } = new URL(outgoing.url());
    if (outgoing.resourceType() === 'fetch') sent.push(`${outgoing.method()} ${pathname}${search}`);
    if (!outgoing.url().startsWith(api.url)) problems.push(`requested ${outgoing.url()}`);
  });
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => {
    // Chromium logs every 4xx and 5xx response as an error.
    const isResponse = /^Failed to load resource: (the server responded|net::)/.test(message.text());
    if (message.type() === 'error' && !isResponse) problems.push(message.text());
  });
  await page.goto(api.url);
  await page.locator('#books-status').filter({ hasText: /./ }).waitFor();
  expect(await page.locator('#books-status').textContent()).not.toContain('Could not load');
}

const button = (name: string) => page.getByRole('button', { name, exact: true });
const field = (name: string) => page.getByRole('textbox', { name, exact: true });
const responseArea = () => page.getByRole('status', { name: 'Answer' });
const table = () => page.getByRole('table', { name: 'Books', exact: true });
const row = (title: string) => table().getByRole('row').filter({ hasText: title });
const part = (name: string) => page.locator(`[data-part="${name}"]`);
const caption = () => page.locator('#diagram-caption');
const attempts = () => page.getByRole('list', { name: 'Attempts' }).getByRole('listitem');
const results = () => page.getByRole('list', { name: 'Results' }).getByRole('listitem');
const selectFault = (value: string) =>
  page.getByRole('combobox', { name: 'Fault', exact: true }).selectOption(value);

/** Waits for a response with this text. The page marks the previous one as busy, so that it never matches. */
async function waitForResponse(text: string | RegExp) {
  await responseArea().and(page.locator(':not([aria-busy])')).filter({ hasText: text }).waitFor();
}

/** Waits for a response with this status. The digits alone could also be part of a request id. */
async function waitForStatus(status: number) {
  await waitForResponse(new RegExp(` · ${status} · `));
}

async function waitUntil(condition: () => boolean) {
  for (let i = 0; i < 100 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(condition()).toBe(true);
}

async function partState(name: string) {
  return part(name).getAttribute('data-state');
}

async function requestApi2(method: string, path: string, body?: object) {
  const { statusCode, body: stream } = await request(api2.url + path, {
    method: method as 'GET',
    ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const text = await stream.text();
  return { status: statusCode, body: text.startsWith('{') ? JSON.parse(text) : undefined };
}

async function storedTitles() {
  const { body } = await requestApi2('GET', '/books?limit=100');
  return body.items.map(({ title }: { title: string }) => title);
}

async function fillForm(title: string, author: string, year = '') {
  await field('Title').fill(title);
  await field('Author').fill(author);
  await field('Year').fill(year);
}

async function addBook(title: string) {
  await fillForm(title, 'Jane Austen', '1815');
  await button('Add book').click();
  await waitForStatus(201);
  await row(title).waitFor();
}

afterEach(() => expect(problems).toEqual([]));

describe('requests', () => {
  test('"Say hello" shows the response with status, milliseconds and request id, and highlights its path', async () => {
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    const text = String(await responseArea().textContent());
    expect(text).toMatch(/GET \/hello · 200 · [\d.]+ ms · request id [\w.-]+/);
    for (const name of ['browser', 'browser-api', 'api', 'api-api2', 'api2'])
      expect(await partState(name)).toBe('ok');
    expect(await partState('external')).toBe('idle');
    expect(await part('api-api2').textContent()).toMatch(/^[\d.]+ ms$/);
    const id = /request id ([\w.-]+)/.exec(
      String(await responseArea().locator('.summary').textContent()),
    )?.[1];
    for (const { lines } of [api, api2])
      await waitUntil(() => lines().some(({ requestId }) => requestId === id));
    expect(await page.locator('#history').textContent()).toContain(id);
  });

  test('"Fetch data" calls the external API the first time and uses the cache the second time', async () => {
    await button('Fetch data').click();
    await waitForResponse('{"from":"outside"}');
    expect(await partState('api-external')).toBe('ok');
    expect(await partState('api2')).toBe('idle');
    await button('Fetch data').click();
    await caption().filter({ hasText: 'from the cache' }).waitFor();
    expect(await partState('api-external')).toBe('idle');
  });

  test.each([
    ['hang', 'did not respond in time (http_response_timeout)'],
    ['reset', 'closed the connection without a response (connection_terminated)'],
    ['status', 'responded with the status 503 (received 503)'],
  ])('the fault %s is described in a sentence and marks its hop as failed', async (kind, description) => {
    await request(`${api2.adminUrl}/fault`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ kind }),
    });
    await button('Say hello').click();
    await waitForResponse(`api2 ${description}`);
    await waitForStatus(500);
    expect([await partState('api'), await partState('api-api2'), await partState('api2')]).toEqual([
      'ok',
      'failed',
      'failed',
    ]);
    expect(await caption().textContent()).toContain(description);
  });

  test('when api2 stops and returns, the page shows what failed and works again', async () => {
    await api2.stop();
    await button('Say hello').click();
    await waitForResponse('api2 refused the connection');
    await fillForm('Emma', 'Jane Austen');
    await button('Add book').click();
    await waitForStatus(502);
    expect(await field('Title').inputValue()).toBe('Emma');
    api2 = await started('api2', { PORT: String(api2.port) });
    for (let i = 0; i < 50 && !(await responseArea().textContent())?.includes('Hello World!'); i++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      await button('Say hello').click();
      await waitForResponse('GET /hello');
    }
    await waitForResponse('Hello World!');
    await button('Add book').click();
    await waitForStatus(201);
    await row('Emma').waitFor();
  });

  test('when api is stopped, the page says so and keeps the input', async () => {
    await fillForm('Emma', 'Jane Austen');
    await api.stop();
    await button('Add book').click();
    await waitForResponse('api could not be reached');
    expect(await partState('browser-api')).toBe('failed');
    expect(await field('Title').inputValue()).toBe('Emma');
  });
});

describe('faults and attempts', () => {
  const explanation = () => page.locator('#explanation');

  test('the select "Fault" offers every kind, and applies to all requests to api2 but not to "Fetch data"', async () => {
    const values = await page
      .getByRole('combobox', { name: 'Fault', exact: true })
      .locator('option')
      .evaluateAll((options) => options.map((option) => (option as HTMLOptionElement).value));
    expect(values).toEqual([
      '',
      'hang;attempt=1',
      'reset;attempt=1',
      'status;code=503;attempt=1',
      'delay;ms=800',
      'hang',
      'reset',
      'status;code=503',
      'truncate',
      'drip',
    ]);
    const faults: string[] = [];
    page.on('request', (outgoing) =>
      faults.push(
        `${outgoing.method()} ${new URL(outgoing.url()).pathname} ${outgoing.headers()['x-fault']}`,
      ),
    );
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    await selectFault('delay;ms=800');
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    await addBook('Emma');
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await waitForStatus(204);
    await button('Fetch data').click();
    await waitForResponse('{"from":"outside"}');
    expect(faults).toEqual([
      'GET /hello undefined',
      'GET /hello delay;ms=800',
      'POST /books delay;ms=800',
      'DELETE /books/1 delay;ms=800',
      'GET /data undefined',
    ]);
  });

  test('the attempts of a hedge that wins are shown in words and as bars on one time axis', async () => {
    await selectFault('hang;attempt=1');
    await button('Say hello').click();
    await waitForResponse(/GET \/hello · 200 .*Hello World!/);
    const [first, hedge] = await attempts().allTextContents();
    expect(first).toMatch(/^Attempt 1, replica 1: cancelled · \d+ ms$/);
    expect(hedge).toMatch(/^Attempt 2, hedge at \d+ ms, replica 1: ok · [\d.]+ ms$/);
    expect(await attempts().count()).toBe(2);
    const [firstBar, hedgeBar] = await attempts()
      .locator('.bar')
      .evaluateAll((bars) => bars.map((bar) => bar.getBoundingClientRect().toJSON() as DOMRect));
    expect(hedgeBar?.left).toBeGreaterThan((firstBar?.left ?? 0) + 100);
    expect(Math.abs((hedgeBar?.right ?? 0) - (firstBar?.right ?? 0))).toBeLessThan(10);
    expect(await explanation().textContent()).toMatch(/hedge.*won.*packages\/next-hop\/src\/hedge-delay\.ts/);
    expect(await part('api-api2').textContent()).toMatch(/^\d{3,} ms$/);
    expect(await partState('api2')).toBe('ok');
  });

  test.each([
    ['', ['ok'], ''],
    ['reset;attempt=1', ['connection_terminated', 'ok'], 'a retry'],
    ['delay;ms=800', ['ok', 'cancelled'], 'attempt 1 got a response first'],
    ['hang', ['http_response_timeout', 'http_response_timeout'], 'one deadline for all attempts'],
    ['reset', ['connection_terminated', 'connection_terminated', 'connection_terminated'], 'at most twice'],
    ['status;code=503;attempt=1', ['ok'], 'only on another replica'],
    ['status;code=503', ['ok'], 'only on another replica'],
    ['truncate', ['http_response_incomplete'], 'reads the whole response'],
    ['drip', ['ok'], 'within the deadline'],
  ])(
    '"Say hello" with the fault "%s" shows the outcomes %j and explains them',
    async (fault, outcomes, text) => {
      await selectFault(fault);
      await button('Say hello').click();
      await waitForResponse('GET /hello');
      const shown = await attempts().locator('strong').allTextContents();
      expect(shown.map((item) => item.split(' · ')[0])).toEqual(outcomes);
      for (const item of shown) expect(item).toMatch(/^[a-z_]+ · [\d.]+ ms(, status 503)?$/);
      if (text === '') expect(await explanation().isVisible()).toBe(false);
      else expect(await explanation().textContent()).toContain(text);
      expect(await caption().textContent()).toMatch(/api2 took [\d.]+ ms/);
    },
  );

  test('a POST whose only attempt times out explains why it is not repeated, and keeps the input', async () => {
    await selectFault('hang;attempt=1');
    await fillForm('Emma', 'Jane Austen');
    await button('Add book').click();
    await waitForStatus(504);
    expect(await attempts().allTextContents()).toEqual([
      expect.stringMatching(/: http_response_timeout · \d+ ms$/),
    ]);
    expect(await explanation().textContent()).toContain('does not repeat a POST');
    expect(await field('Title').inputValue()).toBe('Emma');
  });

  test('a 503 that api2 itself sends for a book is not blamed on api', async () => {
    await selectFault('status;code=503');
    await fillForm('Emma', 'Jane Austen');
    await button('Add book').click();
    await waitForResponse('api2 responded with the status 503 (received 503)');
    expect([await partState('api'), await partState('api2')]).toEqual(['ok', 'failed']);
  });

  test('a list whose body is truncated is reported, and the books stay in the table', async () => {
    await addBook('Emma');
    await selectFault('truncate');
    await button('Reload').click();
    await page.locator('#books-status').filter({ hasText: 'Could not load the books' }).waitFor();
    expect(await row('Emma').isVisible()).toBe(true);
    expect(await page.locator('#history tbody tr').first().textContent()).toMatch(/in the middle.*200/);
    expect(await explanation().textContent()).toContain('services/api/gateway.ts');
  });

  test('"Ten at once" shows an open circuit, whose requests have no attempt', async () => {
    await selectFault('reset');
    for (let i = 0; i < 3 && !(await responseArea().textContent())?.includes('circuit open'); i++) {
      await button('Ten at once').click();
      await waitForResponse('10 × GET /hello');
    }
    expect(await results().filter({ hasText: 'circuit open' }).first().textContent()).toMatch(
      /^circuit open 500 · [\d.]+ ms 0 attempts/,
    );
    expect(await explanation().textContent()).toContain('circuit-breaker.ts');
    await selectFault('');
    await button('Say hello').click();
    await waitForResponse('destination_unavailable');
    expect(await attempts().count()).toBe(0);
    expect(await caption().textContent()).toContain('api2 was not called');
  });

  test('a request that is not repeated because the retry budget is used up says so', async () => {
    await selectFault('hang;attempt=1');
    for (let i = 0; i < 2; i++) {
      await button('Ten at once').click();
      await waitForResponse('10 × GET /hello');
    }
    await button('Say hello').click();
    await waitForResponse('GET /hello · 500');
    expect(await attempts().count()).toBe(1);
    expect(await explanation().textContent()).toMatch(/retry budget was used up.*retry-budget\.ts/);
  });

  test('"Ten at once" shows how ten requests spread over three replicas, without their addresses', async () => {
    for (const HOST of ['127.0.0.2', '127.0.0.3'])
      await started('api2', { HOST, PORT: String(api2.port), FAULTS: 'on' });
    const lookup = async () =>
      ['127.0.0.1', '127.0.0.2', '127.0.0.3'].map((address) => ({ address, family: 4 }));
    const balanced = createTestApi(`http://api2.test:${api2.port}`, {
      lookup,
      faults: true,
      timeoutMs: 2000,
    });
    const server = balanced.app.listen(0, '127.0.0.1');
    await once(server, 'listening');
    api = { ...api, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
    await openPage({});
    await button('Ten at once').click();
    await waitForResponse(/10 × 200: .*replica 1.*replica 2.*replica 3/);
    expect(await results().count()).toBe(10);
    for (const text of await results().allTextContents())
      expect(text).toMatch(/^replica [123] 200 · [\d.]+ ms 1 attempt $/);
    expect(await page.locator('#history tbody tr').filter({ hasText: 'GET /hello' }).count()).toBe(10);
    expect(await page.locator('body').innerText()).not.toMatch(/127\.0\.0|api2\.test/);
    server.close();
    server.closeAllConnections();
    await Promise.all([balanced.api2.close(), balanced.external.close()]);
  });

  test('"Ten at once" changes the live region once, and no other part of the page is live', async () => {
    await responseArea().evaluate((element) => {
      element.dataset.changes = '0';
      new MutationObserver(() => {
        element.dataset.changes = String(Number(element.dataset.changes) + 1);
      }).observe(element, { childList: true, characterData: true, subtree: true });
    });
    await button('Ten at once').click();
    await waitForResponse('10 × GET /hello');
    expect(await responseArea().getAttribute('data-changes')).toBe('1');
    expect(await page.locator('[aria-live], [role=status], [role=alert], [role=log]').count()).toBe(1);
  });

  test('without FAULTS=on, there is no select "Fault", and the single attempt of a request is still shown', async () => {
    api = await started('api', { API2_URL: api2.url });
    await openPage({});
    expect(await page.getByRole('combobox').count()).toBe(0);
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    expect(await attempts().allTextContents()).toEqual([
      expect.stringMatching(/^Attempt 1: ok · [\d.]+ ms$/),
    ]);
  });
});

describe('books', () => {
  test('a book is added, appears immediately, is edited and is deleted', async () => {
    await addBook(' Emma ');
    expect(await field('Title').inputValue()).toBe('');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    expect(await field('Year').inputValue()).toBe('1815');
    await field('Title').fill('Persuasion');
    await field('Year').fill('');
    await button('Save book').click();
    await waitForResponse(/PUT \/books\/1 · 200/);
    await row('Persuasion').waitFor();
    expect(await row('Emma').count()).toBe(0);
    expect((await requestApi2('GET', '/books/1')).body).toEqual({
      id: '1',
      title: 'Persuasion',
      author: 'Jane Austen',
      year: null,
    });
    await row('Persuasion').getByRole('button', { name: 'Delete' }).click();
    await waitForResponse(/DELETE \/books\/1 · 204/);
    await row('Persuasion').waitFor({ state: 'detached' });
    expect(await storedTitles()).toEqual([]);
  });

  test.each(['dblclick', 'Enter'])('%s adds one book and shows no error', async (how) => {
    await fillForm('Emma', 'Jane Austen');
    if (how === 'dblclick') await button('Add book').dblclick();
    else for (const _ of [1, 2]) await field('Title').press('Enter');
    await row('Emma').waitFor();
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await storedTitles()).toEqual(['Emma']);
    await waitForStatus(201);
  });

  test('when the response was lost, submitting the same book again adds it once', async () => {
    await fillForm('Emma', 'Jane Austen');
    await page.route(
      '**/books',
      async (route) => {
        await route.fetch();
        await route.abort();
      },
      { times: 1 },
    );
    await button('Add book').click();
    await waitForResponse('api could not be reached');
    expect(await storedTitles()).toEqual(['Emma']);
    await button('Add book').click();
    await waitForStatus(201);
    expect(await storedTitles()).toEqual(['Emma']);
  });

  test('validation errors are shown at their fields and the input is kept', async () => {
    await fillForm('', 'Jane Austen', 'soon');
    await button('Add book').click();
    await waitForStatus(422);
    expect(await field('Title').getAttribute('aria-invalid')).toBe('true');
    expect(await field('Author').getAttribute('aria-invalid')).toBe('false');
    expect(await page.locator('#year-error').textContent()).toContain('whole number');
    expect(await field('Year').inputValue()).toBe('soon');
    expect(await field('Title').evaluate((element) => element === document.activeElement)).toBe(true);
  });

  test('saving a book that was changed elsewhere shows 412 and both versions, and overwrites only on request', async () => {
    await addBook('Emma');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await button('Save book').click();
    await waitForResponse(/412.*changed/);
    const conflict = page.locator('#conflict');
    await conflict.waitFor();
    expect(await conflict.textContent()).toMatch(/changed.*412.*YoursMine.*TheirsTheirs/s);
    expect(await storedTitles()).toEqual(['Theirs']);
    expect(await field('Title').inputValue()).toBe('Mine');
    await button('Overwrite with mine').click();
    await waitForResponse(/PUT \/books\/1 · 200/);
    expect(await storedTitles()).toEqual(['Mine']);
    expect(await conflict.isVisible()).toBe(false);
  });

  test('"Use theirs" after a 412 shows the version from elsewhere and changes nothing', async () => {
    await addBook('Emma');
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await button('Save book').click();
    await waitForResponse(/412.*changed/);
    await button('Use theirs').click();
    await row('Theirs').waitFor();
    expect(await storedTitles()).toEqual(['Theirs']);
  });

  test('deleting a book that was changed elsewhere shows 412 and the current version', async () => {
    await addBook('Emma');
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await waitForResponse(/412.*changed/);
    await row('Theirs').waitFor();
    expect(await storedTitles()).toEqual(['Theirs']);
  });

  test('saving a book that was deleted elsewhere shows 404 and keeps the input', async () => {
    await addBook('Emma');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await requestApi2('DELETE', '/books/1');
    await button('Save book').click();
    await waitForResponse(/404.*deleted/);
    expect(await field('Title').inputValue()).toBe('Mine');
    await button('Add book').click();
    await waitForStatus(201);
    expect(await storedTitles()).toEqual(['Mine']);
  });

  test('saving a book from a list that was loaded before a change elsewhere shows 412', async () => {
    await requestApi2('POST', '/books', { title: 'Emma', author: 'a' });
    await openPage({});
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await field('Title').press('Enter');
    await waitForResponse(/412.*changed/);
    expect(await storedTitles()).toEqual(['Theirs']);
  });

  test('the input for a new book is restored after another book was edited', async () => {
    await addBook('Emma');
    await fillForm('Half a ti', '', '');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await button('Cancel').click();
    expect(await field('Title').inputValue()).toBe('Half a ti');
  });

  test('all books can be loaded, and one that was added in between is shown once', async () => {
    for (let i = 0; i < 25; i++) await requestApi2('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await openPage({});
    await row('Volume 9.').waitFor();
    await addBook('Latest');
    while (await button('Load more').isVisible()) {
      const rowCount = await table().getByRole('row').count();
      await button('Load more').click();
      await page.waitForFunction(
        (count) =>
          document.querySelectorAll('#books tr').length !== count || document.getElementById('more')?.hidden,
        rowCount,
      );
    }
    const shown = await table().getByRole('rowheader').allTextContents();
    expect(shown).toEqual([...Array.from({ length: 25 }, (_, i) => `Volume ${i}.`), 'Latest']);
  });

  test('deleting a book from a list that was loaded before a change elsewhere shows 412 and deletes nothing', async () => {
    await requestApi2('POST', '/books', { title: 'Emma', author: 'a' });
    await openPage({});
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await waitForResponse(/412.*changed/);
    await row('Theirs').waitFor();
    expect(await storedTitles()).toEqual(['Theirs']);
  });

  test('a book that is saved while Delete is still reading its ETag is deleted without a 412', async () => {
    await requestApi2('POST', '/books', { title: 'Emma', author: 'a' });
    await openPage({});
    let release: (() => Promise<void>) | undefined;
    const hold = async (route: Route) => {
      const response = await route.fetch();
      release = () => route.fulfill({ response });
    };
    await page.route('**/books/1', hold, { times: 1 });
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await waitUntil(() => release !== undefined);
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Persuasion');
    await button('Save book').click();
    await row('Persuasion').waitFor();
    await release?.();
    await waitForResponse(/DELETE \/books\/1/);
    expect(await storedTitles()).toEqual([]);
  });

  test('the history contains every request that the page sends, and a list takes one request', async () => {
    for (let i = 0; i < 12; i++) await requestApi2('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await openPage({});
    expect(sent).toEqual(['GET /books?limit=10']);
    await row('Volume 0.').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await button('Save book').click();
    await button('Overwrite with mine').click();
    await waitForResponse(/PUT .* · 200/);
    await row('Volume 1.').getByRole('button', { name: 'Delete' }).click();
    await waitForStatus(204);
    await button('Undo').click();
    await waitForStatus(201);
    const history = await page.locator('#history tbody td:nth-child(2)').allTextContents();
    expect(history.reverse()).toEqual(sent);
    const steps = 'GET PUT GET PUT GET DELETE POST'.split(' ');
    expect(sent.map((line) => line.split(' ')[0])).toEqual(['GET', ...steps]);
  });

  test('markup in a title is shown as text', async () => {
    const title = '<img src=x onerror="document.title=1"><script>document.title=1</script>';
    await addBook(title);
    expect(await table().getByRole('rowheader').textContent()).toBe(title);
    expect(await page.title()).toBe('Onehop');
    expect(await table().locator('img, script').count()).toBe(0);
  });
});

describe('Undo', () => {
  const undo = () => button('Undo');
  const deleteOf = (title: string) => row(title).getByRole('button', { name: 'Delete' });

  test('adds the deleted book again with a new id, says so and moves focus to Edit', async () => {
    await addBook('Emma');
    await addBook('Persuasion');
    expect(await undo().isVisible()).toBe(false);
    await deleteOf('Emma').click();
    await row('Emma').waitFor({ state: 'detached' });
    expect(await storedTitles()).toEqual(['Persuasion']);
    expect(await undo().evaluate((element) => element === document.activeElement)).toBe(true);
    const description = await undo().evaluate(
      (element) => document.getElementById(element.getAttribute('aria-describedby') ?? '')?.textContent,
    );
    expect(description).toBe('Deleted “Emma”. Undo adds it again as a new book with a new id.');
    expect(await responseArea().textContent()).not.toContain('Undo');
    await undo().click();
    await waitForResponse(/POST \/books · 201 .*Added “Emma” again as a new book with the id 3\./);
    expect(await table().getByRole('rowheader').allTextContents()).toEqual(['Persuasion', 'Emma']);
    expect((await requestApi2('GET', '/books/3')).body).toMatchObject({ author: 'Jane Austen', year: 1815 });
    expect(await undo().isVisible()).toBe(false);
    const editButton = row('Emma').getByRole('button', { name: 'Edit' });
    expect(await editButton.evaluate((element) => element === document.activeElement)).toBe(true);
  });

  test('adds one book after a double click', async () => {
    await addBook('Emma');
    await deleteOf('Emma').click();
    await undo().dblclick();
    await row('Emma').waitFor();
    await undo().waitFor({ state: 'hidden' });
    expect(await storedTitles()).toEqual(['Emma']);
  });

  test('adds one book when the response was lost and it is pressed again', async () => {
    await addBook('Emma');
    await deleteOf('Emma').click();
    await page.route(
      '**/books',
      async (route) => {
        await route.fetch();
        await route.abort();
      },
      { times: 1 },
    );
    await undo().click();
    await waitForResponse('api could not be reached');
    await undo().click();
    await row('Emma').waitFor();
    expect(await storedTitles()).toEqual(['Emma']);
  });

  test('is offered after a double click on Delete, which deletes one book only', async () => {
    for (const title of ['Emma', 'Persuasion', 'Sanditon']) await addBook(title);
    const box = await deleteOf('Emma').boundingBox();
    const [x, y] = [(box?.x ?? 0) + 5, (box?.y ?? 0) + 5];
    await page.mouse.click(x, y);
    await undo().waitFor();
    await page.mouse.move(x, ((await deleteOf('Persuasion').boundingBox())?.y ?? 0) + 5);
    for (const action of ['down', 'up'] as const) await page.mouse[action]({ clickCount: 2 });
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    expect(await storedTitles()).toEqual(['Persuasion', 'Sanditon']);
  });
});

test('every action works with the keyboard alone', async () => {
  const press = async (...keys: string[]) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  const focused = () =>
    page.evaluate(() => document.activeElement?.textContent || document.activeElement?.id);
  await press('Tab', 'ArrowDown', 'Tab');
  expect(await focused()).toBe('Say hello');
  await press('Enter');
  await waitForResponse('Hello World!');
  expect(await attempts().count()).toBe(2);
  await press('Shift+Tab', 'Home', 'Tab', 'Tab', 'Enter');
  await waitForResponse('10 × GET /hello');
  await press('Tab', 'Space');
  await waitForResponse('{"from":"outside"}');
  await press('Tab');
  expect(await focused()).toBe('title');
  await page.keyboard.type('Emma');
  await press('Tab');
  await page.keyboard.type('Jane Austen');
  await press('Tab', 'Tab', 'Enter');
  await row('Emma').waitFor();
  expect(await focused()).toBe('title');
  await press('Tab', 'Tab', 'Tab', 'Tab', 'Enter');
  expect(await focused()).toBe('title');
  await page.keyboard.press('ControlOrMeta+a');
  await page.keyboard.type('Persuasion');
  await press('Enter');
  await row('Persuasion').waitFor();
  expect(await focused()).toBe('Edit');
  await press('Tab');
  expect(await focused()).toBe('Delete');
  await press('Enter');
  await waitForStatus(204);
  await row('Persuasion').waitFor({ state: 'detached' });
  expect(await focused()).toBe('Undo');
  await press('Space');
  await row('Persuasion').waitFor();
  expect(await focused()).toBe('Edit');
});

/** Shows every part of the page: an error, a conflict, an offer to undo, long words. */
async function showAllParts() {
  await addBook('Emma');
  await addBook('Unbreakable'.repeat(15));
  await row('Emma').getByRole('button', { name: 'Delete' }).click();
  await waitForStatus(204);
  await row('Unbreakable').getByRole('button', { name: 'Edit' }).click();
  await field('Year').fill('soon');
  await requestApi2('PUT', '/books/2', { title: 'Theirs', author: 'b' });
  await button('Save book').click();
  await waitForStatus(422);
  await field('Year').fill('1815');
  await button('Save book').click();
  await page.locator('#conflict').waitFor();
  await api2.stop();
  await button('Say hello').click();
  await waitForStatus(500);
}

/** Lists elements that overflow the window or their section. */
function overflowingElements() {
  return page.evaluate(() => {
    const root = document.documentElement;
    const found = root.scrollWidth > root.clientWidth ? [`document: ${root.scrollWidth} px`] : [];
    const isHidden = (element: Element) =>
      !element.checkVisibility() ||
      element.closest('.visually-hidden') !== null ||
      getComputedStyle(element.closest('thead') ?? element).position === 'absolute';
    for (const element of document.querySelectorAll('body *')) {
      const { left, right } = element.getBoundingClientRect();
      const outer = element.parentElement?.closest('section')?.getBoundingClientRect();
      const overflows = left < (outer?.left ?? 0) || right > (outer?.right ?? root.clientWidth) + 0.5;
      const clips =
        element.scrollWidth > element.clientWidth + 1 && element.matches('section, table, div, pre');
      if ((overflows || clips) && !isHidden(element)) {
        const { id, className, tagName, textContent } = element;
        found.push(`${tagName}#${id}.${className} ${left}–${right} ${textContent?.slice(0, 30)}`);
      }
    }
    return found;
  });
}

/** Moves through all controls with the keyboard and lists those that another element covers. */
async function coveredControls() {
  const count = await page.evaluate(
    () =>
      [...document.querySelectorAll('button, input, select')].filter((control) => control.checkVisibility())
        .length,
  );
  const found: string[] = [];
  // One more, because the focus leaves the document once between its last and its first control.
  for (let i = 0; i <= count; i++) {
    await page.keyboard.press('Tab');
    const covered = await page.evaluate(() => {
      const element = document.activeElement;
      if (element === null || element === document.body) return undefined;
      const { left, top, width, height } = element.getBoundingClientRect();
      const hit = document.elementFromPoint(left + width / 2, top + height / 2);
      return element.contains(hit) ? undefined : `${element.id} ${element.textContent}`;
    });
    if (covered !== undefined) found.push(covered);
  }
  return found;
}

describe('layout', () => {
  const WIDTHS = [320, 480, 641, 700, 768, 800, 900, 944, 1024, 1280];
  const profile = mkdtempSync(join(tmpdir(), 'onehop-browser-'));

  afterAll(() => rmSync(profile, { recursive: true, force: true }));

  /** Opens the page in a browser whose default text size is set to 200 %. */
  async function openWithLargeText() {
    mkdirSync(join(profile, 'Default'));
    const preferences = { webkit: { webprefs: { default_font_size: 32, default_fixed_font_size: 26 } } };
    writeFileSync(join(profile, 'Default', 'Preferences'), JSON.stringify(preferences));
    await context.close();
    await openIn(await chromium.launchPersistentContext(profile, CHROMIUM));
  }

  test.each([
    ['16px', 'text at 100 %', async () => {}],
    [
      '32px',
      'text at 200 % by the root font size',
      async () =>
        void (await page.evaluate(() => {
          document.documentElement.style.fontSize = '200%';
        })),
    ],
    ['32px', 'text at 200 % by the browser setting', openWithLargeText],
  ])(
    'no element overflows or covers the focused control from 320 to 1280 px with %s, %s',
    async (size, _, enlarge) => {
      await enlarge();
      expect(await page.evaluate(() => getComputedStyle(document.documentElement).fontSize)).toBe(size);
      await showAllParts();
      for (const name of ['Say hello', 'Ten at once']) {
        await button(name).click();
        await waitForResponse(name === 'Say hello' ? /^GET \/hello/ : '10 × GET /hello');
        for (const width of WIDTHS) {
          await page.setViewportSize({ width, height: 720 });
          expect({ width, overflowing: await overflowingElements() }).toEqual({ width, overflowing: [] });
        }
      }
      for (const width of [320, 800, 1280]) {
        await page.setViewportSize({ width, height: 720 });
        expect({ width, covered: await coveredControls() }).toEqual({ width, covered: [] });
      }
    },
  );

  test('the diagram and the response stay in view at 1280×720 while books are added, edited and deleted', async () => {
    for (let i = 0; i < 30; i++) await requestApi2('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await openPage({ viewport: { width: 1280, height: 720 } });
    const expectInView = async () => {
      for (const part of [page.locator('#diagram'), responseArea()]) {
        const { y, height } = (await part.boundingBox()) ?? { y: -1, height: 0 };
        expect(y).toBeGreaterThanOrEqual(0);
        expect(y + height).toBeLessThanOrEqual(720);
      }
    };
    await button('Load more').click();
    await row('Volume 19.').waitFor();
    await addBook('Emma');
    await expectInView();
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Persuasion');
    await button('Save book').click();
    await waitForStatus(200);
    await row('Persuasion').waitFor();
    await expectInView();
    await row('Persuasion').getByRole('button', { name: 'Delete' }).click();
    await waitForStatus(204);
    await button('Undo').waitFor();
    await expectInView();
    // The page shows at most 2000 characters of a response.
    await addBook('A'.repeat(200));
    await fillForm('B'.repeat(3000), 'a');
    await button('Add book').click();
    await waitForStatus(422);
    await expectInView();
    await page.locator('#history tr').last().scrollIntoViewIfNeeded();
    await expectInView();
    await selectFault('hang;attempt=1');
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    await expectInView();
    await selectFault('');
    await button('Ten at once').click();
    await waitForResponse('10 × GET /hello');
    await expectInView();
  });
});

describe.each(['light', 'dark'] as const)('in %s', (colorScheme) => {
  test.each([1000, 360])('at %i px nothing overflows and axe-core reports no problems', async (width) => {
    await openPage({ colorScheme, reducedMotion: 'reduce', viewport: { width, height: 900 } });
    await addBook('A book with a title that is long enough to need another line, Volume 1');
    await addBook('Unbreakable'.repeat(15));
    await row('A book').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await requestApi2('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await button('Save book').click();
    await page.locator('#conflict').waitFor();
    await button('Fetch data').click();
    await waitForResponse('{"from":"outside"}');
    const findProblems = async () => {
      const found = (await page.evaluate(`${axe}; axe.run(document, { resultTypes: ['violations'] })`)) as {
        violations: { id: string; impact: string; nodes: { html: string }[] }[];
      };
      return found.violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]);
    };
    await button('Ten at once').click();
    await waitForResponse('10 × GET /hello');
    expect(await findProblems()).toEqual([]);
    await selectFault('hang;attempt=1');
    await button('Say hello').click();
    await waitForResponse('Hello World!');
    expect(await findProblems()).toEqual([]);
    await api2.stop();
    await button('Say hello').click();
    await waitForResponse('api2 refused the connection');
    const overflows = await page.evaluate(
      () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
    );
    expect(overflows).toBe(false);
    expect(await findProblems()).toEqual([]);
    if (process.env.SCREENSHOTS)
      await page.screenshot({
        path: `${process.env.SCREENSHOTS}/${colorScheme}-${width}.png`,
        fullPage: true,
      });
  });
});

test('a pending request is not animated if the user prefers reduced motion', async () => {
  await request(`${api2.adminUrl}/fault`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: '{"kind":"hang"}',
  });
  for (const [reducedMotion, animation] of [
    ['reduce', 'none'],
    ['no-preference', 'pulse'],
  ] as const) {
    await page.emulateMedia({ reducedMotion });
    await button('Say hello').click();
    await part('api-api2').and(page.locator('[data-state="pending"]')).waitFor();
    const name = await part('api-api2').evaluate(
      (element) => getComputedStyle(element, '::before').animationName,
    );
    expect(name).toBe(animation);
    await waitForStatus(500);
  }
});
