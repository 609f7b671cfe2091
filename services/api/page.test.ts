import { existsSync, readFileSync } from 'node:fs';
import request from 'supertest';
import { createTestApi } from '../../test/app-under-test';

const { app, api2, external } = createTestApi('http://127.0.0.1:9');

afterAll(() => Promise.all([api2.close(), external.close()]));

async function pageFiles() {
  const { text } = await request(app).get('/').expect(200);
  const linked = [...text.matchAll(/(?:src|href)="(\/[\w.-]+)"/g)].map(([, path]) => String(path));
  const all = new Set(['/', ...linked]);
  for (const path of all) {
    const script = path.endsWith('.js') ? (await request(app).get(path).expect(200)).text : '';
    for (const [, name] of script.matchAll(/from '\.(\/[\w.-]+)'/g)) all.add(String(name));
  }
  return [...all];
}

test('serves the page and all files that it refers to, less than 100 kB in total, with security headers', async () => {
  let bytes = 0;
  for (const path of await pageFiles()) {
    const res = await request(app).get(path).buffer(true).expect(200);
    bytes += Number(res.headers['content-length']);
    expect(res.headers['cache-control']).toBe('no-cache');
    expect(res.headers['x-content-type-options']).toBe('nosniff');
    expect(res.headers['x-frame-options']).toBe('DENY');
    expect(res.headers['referrer-policy']).toBe('no-referrer');
    expect(res.headers['content-security-policy']).toContain("default-src 'none'");
    expect(res.headers['content-security-policy']).toContain("frame-ancestors 'none'");
    expect(res.headers['content-security-policy']).not.toMatch(/unsafe|upgrade-insecure/);
    expect(res.headers).not.toHaveProperty('strict-transport-security');
  }
  expect(bytes).toBeGreaterThan(10_000);
  expect(bytes).toBeLessThan(100_000);
});

test('responds 304 to a matching If-None-Match and 405 to other methods', async () => {
  const { headers } = await request(app).get('/page.js').expect(200);
  expect(headers['content-type']).toBe('text/javascript; charset=utf-8');
  await request(app).get('/page.js').set('if-none-match', String(headers.etag)).expect(304);
  await request(app).post('/').expect(405).expect('allow', 'GET, HEAD');
});

test.each(['/../package.json', '/page.ts', '/index.html', '/page/page.js', '/%2e%2e/package.json'])(
  'does not serve %s',
  async (path) => {
    expect((await request(app).get(path)).status).toBe(404);
  },
);

test('the page has a description for search engines and link previews', async () => {
  const { text } = await request(app).get('/').expect(200);
  expect(text).toMatch(/<meta name="description" content="[^"]{50,160}">/);
});

test('the files that the page names in its explanations exist', () => {
  const source = readFileSync('services/api/page/explanation.ts', 'utf8');
  const files = [...source.matchAll(/'([\w/-]+\.ts)'/g)].map(([, file]) => String(file));
  expect(files.length).toBeGreaterThan(3);
  expect(files.filter((file) => !existsSync(file))).toEqual([]);
});

test('the page offers faults only if they are enabled, and its ETag depends on that', async () => {
  const enabled = createTestApi('http://127.0.0.1:9', { faults: true });
  const [off, on] = await Promise.all([request(app).get('/'), request(enabled.app).get('/')]);
  await Promise.all([enabled.api2.close(), enabled.external.close()]);
  expect(off.text).not.toContain('<html data-faults');
  expect(on.text).toContain('<html data-faults');
  expect(on.headers.etag).not.toBe(off.headers.etag);
});
