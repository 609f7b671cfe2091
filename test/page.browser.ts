/// <reference lib="dom" />
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';
import { request } from 'undici';
import { type Program, startedPrograms } from './programs';
import { httpHop, type StubHop } from './stub-hop';

const started = startedPrograms();
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
let external: StubHop;
let problems: string[];
/** What the page has sent to api's routes since it was opened. */
let sent: string[];

jest.setTimeout(30_000);

beforeAll(async () => {
  browser = await chromium.launch(CHROMIUM);
  external = await httpHop((_req, res) => {
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
    EXTERNAL_URL: `${external.origin}/data.json`,
  });
  await open({});
});

afterEach(() => context.close());

/** Opens the page, and writes down what it should never do. */
async function open(options: Parameters<Browser['newContext']>[0]) {
  await context?.close();
  await use(await browser.newContext({ viewport: { width: 1000, height: 900 }, ...options }));
}

async function use(opened: BrowserContext) {
  problems = [];
  sent = [];
  context = opened;
  page = await context.newPage();
  page.on('request', (asked) => {
    const { pathname, search } = new URL(asked.url());
    if (asked.resourceType() === 'fetch') sent.push(`${asked.method()} ${pathname}${search}`);
    if (!asked.url().startsWith(api.url)) problems.push(`asked ${asked.url()}`);
  });
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => {
    // Chromium itself reports each answer of 4xx and 5xx.
    const isAnswer = /^Failed to load resource: (the server responded|net::)/.test(message.text());
    if (message.type() === 'error' && !isAnswer) problems.push(message.text());
  });
  await page.goto(api.url);
  await page.locator('#books-state').filter({ hasText: /./ }).waitFor();
  expect(await page.locator('#books-state').textContent()).not.toContain('cannot be read');
}

const button = (name: string) => page.getByRole('button', { name, exact: true });
const field = (name: string) => page.getByRole('textbox', { name, exact: true });
const answer = () => page.getByRole('status', { name: 'Answer' });
const table = () => page.getByRole('table', { name: 'Books', exact: true });
const row = (title: string) => table().getByRole('row').filter({ hasText: title });
const part = (name: string) => page.locator(`[data-part="${name}"]`);
const way = () => page.locator('#way');

// The page marks the answer of the previous action as busy, so that one never matches.
async function says(text: string | RegExp) {
  await answer().and(page.locator(':not([aria-busy])')).filter({ hasText: text }).waitFor();
}

/** Waits for an answer with this status; the digits alone could also be part of a request id. */
async function saysStatus(status: number) {
  await says(new RegExp(` · ${status} · `));
}

async function until(condition: () => boolean) {
  for (let i = 0; i < 100 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10));
  expect(condition()).toBe(true);
}

async function stateOf(name: string) {
  return part(name).getAttribute('data-state');
}

async function direct(method: string, path: string, body?: object) {
  const { statusCode, body: stream } = await request(api2.url + path, {
    method: method as 'GET',
    ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const text = await stream.text();
  return { status: statusCode, body: text.startsWith('{') ? JSON.parse(text) : undefined };
}

async function titles() {
  const { body } = await direct('GET', '/books?limit=100');
  return body.items.map(({ title }: { title: string }) => title);
}

async function type(title: string, author: string, year = '') {
  await field('Title').fill(title);
  await field('Author').fill(author);
  await field('Year').fill(year);
}

async function add(title: string) {
  await type(title, 'Jane Austen', '1815');
  await button('Add book').click();
  await saysStatus(201);
  await row(title).waitFor();
}

afterEach(() => expect(problems).toEqual([]));

describe('asking', () => {
  test('"Say hello" shows the answer with status, milliseconds and request id, and lights its way', async () => {
    await button('Say hello').click();
    await says('Hello World!');
    const text = String(await answer().textContent());
    expect(text).toMatch(/GET \/hello · 200 · [\d.]+ ms · request id [\w.-]+/);
    for (const name of ['browser', 'browser-api', 'api', 'api-api2', 'api2'])
      expect(await stateOf(name)).toBe('ok');
    expect(await stateOf('external')).toBe('idle');
    expect(await part('api-api2').textContent()).toMatch(/^[\d.]+ ms$/);
    const id = /request id ([\w.-]+)/.exec(String(await answer().locator('.line').textContent()))?.[1];
    for (const { lines } of [api, api2]) await until(() => lines().some(({ requestId }) => requestId === id));
    expect(await page.locator('#journal').textContent()).toContain(id);
  });

  test('"Fetch data" goes to the external API, then comes out of the cache', async () => {
    await button('Fetch data').click();
    await says('{"from":"outside"}');
    expect(await stateOf('api-external')).toBe('ok');
    expect(await stateOf('api2')).toBe('idle');
    await button('Fetch data').click();
    await way().filter({ hasText: 'out of the cache' }).waitFor();
    expect(await stateOf('api-external')).toBe('idle');
  });

  test.each([
    ['hang', 'it did not answer in time (http_response_timeout)'],
    ['reset', 'it closed the connection without an answer (connection_terminated)'],
    ['status', 'it answered with what is of no use (received 503)'],
  ])('the fault %s is told in words, and colours its hop', async (kind, words) => {
    await request(`${api2.adminUrl}/fault`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ kind }),
    });
    await button('Say hello').click();
    await says(`api2: ${words}`);
    await saysStatus(500);
    expect([await stateOf('api'), await stateOf('api-api2'), await stateOf('api2')]).toEqual([
      'ok',
      'failed',
      'failed',
    ]);
    expect(await way().textContent()).toContain(words);
  });

  test('api2 away and back: the page says what failed, and goes on', async () => {
    await api2.stop();
    await button('Say hello').click();
    await says('it takes no connections');
    await type('Emma', 'Jane Austen');
    await button('Add book').click();
    await saysStatus(502);
    expect(await field('Title').inputValue()).toBe('Emma');
    api2 = await started('api2', { PORT: String(api2.port) });
    for (let i = 0; i < 50 && !(await answer().textContent())?.includes('Hello World!'); i++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      await button('Say hello').click();
      await says('GET /hello');
    }
    await says('Hello World!');
    await button('Add book').click();
    await saysStatus(201);
    await row('Emma').waitFor();
  });

  test('api away: it says so, and keeps what was typed', async () => {
    await type('Emma', 'Jane Austen');
    await api.stop();
    await button('Add book').click();
    await says('api cannot be reached');
    expect(await stateOf('browser-api')).toBe('failed');
    expect(await field('Title').inputValue()).toBe('Emma');
  });
});

describe('books', () => {
  test('one is added, seen at once, edited and deleted', async () => {
    await add(' Emma ');
    expect(await field('Title').inputValue()).toBe('');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    expect(await field('Year').inputValue()).toBe('1815');
    await field('Title').fill('Persuasion');
    await field('Year').fill('');
    await button('Save book').click();
    await says(/PUT \/books\/1 · 200/);
    await row('Persuasion').waitFor();
    expect(await row('Emma').count()).toBe(0);
    expect((await direct('GET', '/books/1')).body).toEqual({
      id: '1',
      title: 'Persuasion',
      author: 'Jane Austen',
      year: null,
    });
    await row('Persuasion').getByRole('button', { name: 'Delete' }).click();
    await says(/DELETE \/books\/1 · 204/);
    await row('Persuasion').waitFor({ state: 'detached' });
    expect(await titles()).toEqual([]);
  });

  test.each(['dblclick', 'Enter'])('%s adds one book, and shows no error', async (how) => {
    await type('Emma', 'Jane Austen');
    if (how === 'dblclick') await button('Add book').dblclick();
    else for (const _ of [1, 2]) await field('Title').press('Enter');
    await row('Emma').waitFor();
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(await titles()).toEqual(['Emma']);
    await saysStatus(201);
  });

  test('an answer that was lost: the same book again is the same request', async () => {
    await type('Emma', 'Jane Austen');
    await page.route(
      '**/books',
      async (route) => {
        await route.fetch();
        await route.abort();
      },
      { times: 1 },
    );
    await button('Add book').click();
    await says('api cannot be reached');
    expect(await titles()).toEqual(['Emma']);
    await button('Add book').click();
    await saysStatus(201);
    expect(await titles()).toEqual(['Emma']);
  });

  test('what is wrong is told at its field, and nothing typed is lost', async () => {
    await type('', 'Jane Austen', 'soon');
    await button('Add book').click();
    await saysStatus(422);
    expect(await field('Title').getAttribute('aria-invalid')).toBe('true');
    expect(await field('Author').getAttribute('aria-invalid')).toBe('false');
    expect(await page.locator('#year-fault').textContent()).toContain('whole number');
    expect(await field('Year').inputValue()).toBe('soon');
    expect(await field('Title').evaluate((element) => element === document.activeElement)).toBe(true);
  });

  test('changed behind its back while it is edited: 412, both versions, nothing overwritten until told to', async () => {
    await add('Emma');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await button('Save book').click();
    await says(/412.*changed/);
    const conflict = page.locator('#conflict');
    await conflict.waitFor();
    expect(await conflict.textContent()).toMatch(/changed.*412.*YoursMine.*TheirsTheirs/s);
    expect(await titles()).toEqual(['Theirs']);
    expect(await field('Title').inputValue()).toBe('Mine');
    await button('Save mine over it').click();
    await says(/PUT \/books\/1 · 200/);
    expect(await titles()).toEqual(['Mine']);
    expect(await conflict.isVisible()).toBe(false);
  });

  test('changed behind its back, and theirs taken', async () => {
    await add('Emma');
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await button('Save book').click();
    await says(/412.*changed/);
    await button('Take theirs').click();
    await row('Theirs').waitFor();
    expect(await titles()).toEqual(['Theirs']);
  });

  test('changed behind its back, and deleted: 412, and it is still there, as it is now', async () => {
    await add('Emma');
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await says(/412.*changed/);
    await row('Theirs').waitFor();
    expect(await titles()).toEqual(['Theirs']);
  });

  test('deleted behind its back while it is edited: told, and what was typed stays', async () => {
    await add('Emma');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await direct('DELETE', '/books/1');
    await button('Save book').click();
    await says(/404.*deleted/);
    expect(await field('Title').inputValue()).toBe('Mine');
    await button('Add book').click();
    await saysStatus(201);
    expect(await titles()).toEqual(['Mine']);
  });

  test('a list read before a change elsewhere: the change is not overwritten unseen', async () => {
    await direct('POST', '/books', { title: 'Emma', author: 'a' });
    await open({});
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await field('Title').press('Enter');
    await says(/412.*changed/);
    expect(await titles()).toEqual(['Theirs']);
  });

  test('what was typed for a new book is there again after another was edited', async () => {
    await add('Emma');
    await type('Half a ti', '', '');
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await button('Cancel').click();
    expect(await field('Title').inputValue()).toBe('Half a ti');
  });

  test('all books can be reached, and one that is added between is not shown twice', async () => {
    for (let i = 0; i < 25; i++) await direct('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await open({});
    await row('Volume 9.').waitFor();
    await add('Latest');
    while (await button('More books').isVisible()) {
      const before = await table().getByRole('row').count();
      await button('More books').click();
      await page.waitForFunction(
        (count) =>
          document.querySelectorAll('#books tr').length !== count || document.getElementById('more')?.hidden,
        before,
      );
    }
    const shown = await table().getByRole('rowheader').allTextContents();
    expect(shown).toEqual([...Array.from({ length: 25 }, (_, i) => `Volume ${i}.`), 'Latest']);
  });

  test('a list read before a change elsewhere: Delete gets 412 and deletes nothing', async () => {
    await direct('POST', '/books', { title: 'Emma', author: 'a' });
    await open({});
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await row('Emma').getByRole('button', { name: 'Delete' }).click();
    await says(/412.*changed/);
    await row('Theirs').waitFor();
    expect(await titles()).toEqual(['Theirs']);
  });

  test('every request that the page sends is in the history, and a list costs one request', async () => {
    for (let i = 0; i < 12; i++) await direct('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await open({});
    expect(sent).toEqual(['GET /books?limit=10']);
    await row('Volume 0.').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Mine');
    await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
    await button('Save book').click();
    await button('Save mine over it').click();
    await says(/PUT .* · 200/);
    await row('Volume 1.').getByRole('button', { name: 'Delete' }).click();
    await saysStatus(204);
    await button('Undo').click();
    await saysStatus(201);
    const history = await page.locator('#journal tbody td:nth-child(2)').allTextContents();
    expect(history.reverse()).toEqual(sent);
    const steps = 'GET PUT GET PUT GET DELETE POST'.split(' ');
    expect(sent.map((line) => line.split(' ')[0])).toEqual(['GET', ...steps]);
  });

  test('markup in a title is only ever text', async () => {
    const title = '<img src=x onerror="document.title=1"><script>document.title=1</script>';
    await add(title);
    expect(await table().getByRole('rowheader').textContent()).toBe(title);
    expect(await page.title()).toBe('Onehop: see the hops');
    expect(await table().locator('img, script').count()).toBe(0);
  });
});

describe('Undo', () => {
  const undo = () => button('Undo');
  const deleteOf = (title: string) => row(title).getByRole('button', { name: 'Delete' });

  test('adds the deleted book again with a new id, and says so; the focus goes along', async () => {
    await add('Emma');
    await add('Persuasion');
    expect(await undo().isVisible()).toBe(false);
    await deleteOf('Emma').click();
    await row('Emma').waitFor({ state: 'detached' });
    expect(await titles()).toEqual(['Persuasion']);
    expect(await undo().evaluate((element) => element === document.activeElement)).toBe(true);
    const description = await undo().evaluate(
      (element) => document.getElementById(element.getAttribute('aria-describedby') ?? '')?.textContent,
    );
    expect(description).toBe('Deleted “Emma”. Undo adds it again as a new book with a new id.');
    expect(await answer().textContent()).not.toContain('Undo');
    await undo().click();
    await says(/POST \/books · 201 .*Added “Emma” again as a new book with the id 3\./);
    expect(await table().getByRole('rowheader').allTextContents()).toEqual(['Persuasion', 'Emma']);
    expect((await direct('GET', '/books/3')).body).toMatchObject({ author: 'Jane Austen', year: 1815 });
    expect(await undo().isVisible()).toBe(false);
    const editButton = row('Emma').getByRole('button', { name: 'Edit' });
    expect(await editButton.evaluate((element) => element === document.activeElement)).toBe(true);
  });

  test('adds one book after a double click', async () => {
    await add('Emma');
    await deleteOf('Emma').click();
    await undo().dblclick();
    await row('Emma').waitFor();
    await undo().waitFor({ state: 'hidden' });
    expect(await titles()).toEqual(['Emma']);
  });

  test('adds one book when the response was lost and it is pressed again', async () => {
    await add('Emma');
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
    await says('api cannot be reached');
    await undo().click();
    await row('Emma').waitFor();
    expect(await titles()).toEqual(['Emma']);
  });

  test('is offered for one book after a double click on Delete, and the next row is not deleted', async () => {
    for (const title of ['Emma', 'Persuasion', 'Sanditon']) await add(title);
    const box = await deleteOf('Emma').boundingBox();
    const [x, y] = [(box?.x ?? 0) + 5, (box?.y ?? 0) + 5];
    await page.mouse.click(x, y);
    await undo().waitFor();
    await page.mouse.move(x, ((await deleteOf('Persuasion').boundingBox())?.y ?? 0) + 5);
    for (const action of ['down', 'up'] as const) await page.mouse[action]({ clickCount: 2 });
    await button('Say hello').click();
    await says('Hello World!');
    expect(await titles()).toEqual(['Persuasion', 'Sanditon']);
  });
});

test('the keyboard alone suffices', async () => {
  const press = async (...keys: string[]) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  const focused = () =>
    page.evaluate(() => document.activeElement?.textContent || document.activeElement?.id);
  await press('Tab');
  expect(await focused()).toBe('Say hello');
  await press('Enter');
  await says('Hello World!');
  await press('Tab', 'Space');
  await says('{"from":"outside"}');
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
  await saysStatus(204);
  await row('Persuasion').waitFor({ state: 'detached' });
  expect(await focused()).toBe('Undo');
  await press('Space');
  await row('Persuasion').waitFor();
  expect(await focused()).toBe('Edit');
});

/** Everything of the page's parts on screen: a failure, a conflict, an offer to undo, long words. */
async function fillThePage() {
  await add('Emma');
  await add('Unbreakable'.repeat(15));
  await row('Emma').getByRole('button', { name: 'Delete' }).click();
  await saysStatus(204);
  await row('Unbreakable').getByRole('button', { name: 'Edit' }).click();
  await field('Year').fill('soon');
  await direct('PUT', '/books/2', { title: 'Theirs', author: 'b' });
  await button('Save book').click();
  await saysStatus(422);
  await field('Year').fill('1815');
  await button('Save book').click();
  await page.locator('#conflict').waitFor();
  await api2.stop();
  await button('Say hello').click();
  await saysStatus(500);
}

/** What reaches beyond the window, or beyond the section that it is in. */
function overflowing() {
  return page.evaluate(() => {
    const root = document.documentElement;
    const found = root.scrollWidth > root.clientWidth ? [`document: ${root.scrollWidth} px`] : [];
    const isUnseen = (element: Element) =>
      !element.checkVisibility() ||
      element.closest('.unseen') !== null ||
      getComputedStyle(element.closest('thead') ?? element).position === 'absolute';
    for (const element of document.querySelectorAll('body *')) {
      const { left, right } = element.getBoundingClientRect();
      const outer = element.parentElement?.closest('section')?.getBoundingClientRect();
      const isBeyond = left < (outer?.left ?? 0) || right > (outer?.right ?? root.clientWidth) + 0.5;
      const isCut =
        element.scrollWidth > element.clientWidth + 1 && element.matches('section, table, div, pre');
      if ((isBeyond || isCut) && !isUnseen(element)) {
        const { id, className, tagName, textContent } = element;
        found.push(`${tagName}#${id}.${className} ${left}–${right} ${textContent?.slice(0, 30)}`);
      }
    }
    return found;
  });
}

/** Moves through all controls with the keyboard, and finds those that something covers. */
async function coveredControls() {
  const count = await page.evaluate(
    () =>
      [...document.querySelectorAll('button, input')].filter((control) => control.checkVisibility()).length,
  );
  const found: string[] = [];
  // One more, because the focus leaves the document once between its end and its start.
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

  /** Opens the page in a browser whose user has set the default text size to 200 %. */
  async function openWithLargeText() {
    mkdirSync(join(profile, 'Default'));
    const preferences = { webkit: { webprefs: { default_font_size: 32, default_fixed_font_size: 26 } } };
    writeFileSync(join(profile, 'Default', 'Preferences'), JSON.stringify(preferences));
    await context.close();
    await use(await chromium.launchPersistentContext(profile, CHROMIUM));
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
    ['32px', 'text at 200 % by the setting of the browser', openWithLargeText],
  ])(
    'nothing overflows and nothing covers the focus from 320 to 1280 px with %s, %s',
    async (size, _, enlarge) => {
      await enlarge();
      expect(await page.evaluate(() => getComputedStyle(document.documentElement).fontSize)).toBe(size);
      await fillThePage();
      for (const width of WIDTHS) {
        await page.setViewportSize({ width, height: 720 });
        expect({ width, overflowing: await overflowing() }).toEqual({ width, overflowing: [] });
      }
      for (const width of [320, 800, 1280]) {
        await page.setViewportSize({ width, height: 720 });
        expect({ width, covered: await coveredControls() }).toEqual({ width, covered: [] });
      }
    },
  );

  test('the diagram and the answer stay in view at 1280×720 while books are added, edited and deleted', async () => {
    for (let i = 0; i < 30; i++) await direct('POST', '/books', { title: `Volume ${i}.`, author: 'a' });
    await open({ viewport: { width: 1280, height: 720 } });
    const expectInView = async () => {
      for (const part of [page.locator('#picture'), answer()]) {
        const { y, height } = (await part.boundingBox()) ?? { y: -1, height: 0 };
        expect(y).toBeGreaterThanOrEqual(0);
        expect(y + height).toBeLessThanOrEqual(720);
      }
    };
    await button('More books').click();
    await row('Volume 19.').waitFor();
    await add('Emma');
    await expectInView();
    await row('Emma').getByRole('button', { name: 'Edit' }).click();
    await field('Title').fill('Persuasion');
    await button('Save book').click();
    await saysStatus(200);
    await row('Persuasion').waitFor();
    await expectInView();
    await row('Persuasion').getByRole('button', { name: 'Delete' }).click();
    await saysStatus(204);
    await button('Undo').waitFor();
    await expectInView();
    // The longest answer that is shown: 2000 characters.
    await add('A'.repeat(200));
    await type('B'.repeat(3000), 'a');
    await button('Add book').click();
    await saysStatus(422);
    await expectInView();
    await page.locator('#journal tr').last().scrollIntoViewIfNeeded();
    await expectInView();
  });
});

describe.each(['light', 'dark'] as const)('in %s', (colorScheme) => {
  test.each([1000, 360])(
    '%i px wide: nothing is cut off, and axe-core finds nothing serious',
    async (width) => {
      await open({ colorScheme, reducedMotion: 'reduce', viewport: { width, height: 900 } });
      await add('A book with a title that is long enough to need another line, Volume 1');
      await add('Unbreakable'.repeat(15));
      await row('A book').getByRole('button', { name: 'Edit' }).click();
      await field('Title').fill('Mine');
      await direct('PUT', '/books/1', { title: 'Theirs', author: 'b' });
      await button('Save book').click();
      await page.locator('#conflict').waitFor();
      await button('Fetch data').click();
      await api2.stop();
      await button('Say hello').click();
      await says('it takes no connections');
      const cut = await page.evaluate(
        () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
      );
      expect(cut).toBe(false);
      const found = (await page.evaluate(`${axe}; axe.run(document, { resultTypes: ['violations'] })`)) as {
        violations: { id: string; impact: string; nodes: { html: string }[] }[];
      };
      const serious = found.violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
      expect(serious.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)])).toEqual([]);
      if (process.env.SCREENSHOTS)
        await page.screenshot({
          path: `${process.env.SCREENSHOTS}/${colorScheme}-${width}.png`,
          fullPage: true,
        });
    },
  );
});

test('what is on its way is not animated for those who want no motion', async () => {
  await request(`${api2.adminUrl}/fault`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: '{"kind":"hang"}',
  });
  for (const [reducedMotion, animation] of [
    ['reduce', 'none'],
    ['no-preference', 'on-its-way'],
  ] as const) {
    await page.emulateMedia({ reducedMotion });
    await button('Say hello').click();
    await part('api-api2').and(page.locator('[data-state="live"]')).waitFor();
    const name = await part('api-api2').evaluate(
      (element) => getComputedStyle(element, '::before').animationName,
    );
    expect(name).toBe(animation);
    await saysStatus(500);
  }
});
