import { request } from 'undici';
import { type Program, programStarter, start } from './programs';

const startProgram = programStarter();
let api2: Program;
let api: Program;

beforeAll(async () => {
  api2 = await start('api2', { FAULTS: 'on' });
  api = await start('api', { API2_URL: api2.url, API2_TIMEOUT_MS: '1000' });
});

afterEach(() => call(`${api2.adminUrl}/fault`, { method: 'DELETE' }));

afterAll(() => Promise.all([api.stop('SIGKILL'), api2.stop('SIGKILL')]));

async function call(url: string, options: Parameters<typeof request>[1] = {}) {
  const { statusCode, body, headers } = await request(url, options);
  return { status: statusCode, text: await body.text(), headers };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const putFault = (
  { adminUrl }: Program,
  fault: unknown,
  headers: object = { 'content-type': 'application/json' },
) =>
  call(`${adminUrl}/fault`, {
    method: 'PUT',
    headers: headers as Record<string, string>,
    body: typeof fault === 'string' ? fault : JSON.stringify(fault),
  });

test.each<[object, number, string]>([
  [{ kind: 'delay', delayMs: 300 }, 200, 'Hello World!'],
  [{ kind: 'status' }, 500, 'Error from api2: 503'],
  [{ kind: 'status', status: 404 }, 500, 'Error from api2: 404'],
  [{ kind: 'reset' }, 500, 'Internal error contacting api2'],
  [{ kind: 'truncate' }, 500, 'Internal error contacting api2'],
  [{ kind: 'drip', delayMs: 200 }, 500, 'Internal error contacting api2'],
  [{ kind: 'hang' }, 500, 'Internal error contacting api2'],
])('%j has the expected effect on /hello until it is deleted', async (fault, status, text) => {
  expect((await putFault(api2, fault)).status).toBe(200);
  expect(await call(`${api.url}/hello`)).toMatchObject({ status, text });
  expect((await call(`${api2.adminUrl}/readyz`)).status).toBe(200);
  expect((await call(`${api2.adminUrl}/fault`, { method: 'DELETE' })).status).toBe(204);
  expect((await call(`${api2.adminUrl}/fault`)).text).toBe('{}');
  expect(await call(`${api.url}/hello`)).toMatchObject({ status: 200, text: 'Hello World!' });
});

test('missing fields get defaults, and the fault ends after its seconds', async () => {
  expect(JSON.parse((await putFault(api2, { kind: 'delay' })).text)).toEqual({
    kind: 'delay',
    rate: 1,
    delayMs: 1000,
    seconds: 60,
  });
  expect(JSON.parse((await putFault(api2, { kind: 'drip' })).text)).toMatchObject({ delayMs: 100 });
  const startedMs = performance.now();
  expect(JSON.parse((await putFault(api2, { kind: 'status', seconds: 2 })).text)).toMatchObject({
    status: 503,
  });
  expect((await call(`${api2.url}/respond`)).status).toBe(503);
  while ((await call(`${api2.adminUrl}/fault`)).text !== '{}') await sleep(50);
  expect(performance.now() - startedMs).toBeGreaterThan(1950);
  expect(performance.now() - startedMs).toBeLessThan(10_000);
  expect((await call(`${api2.url}/respond`)).status).toBe(200);
});

test('a rate of 0.5 affects about half of the requests', async () => {
  await putFault(api2, { kind: 'status', rate: 0.5 });
  let affected = 0;
  for (let i = 0; i < 200; i++) affected += Number((await call(`${api2.url}/respond`)).status === 503);
  expect(affected).toBeGreaterThan(60);
  expect(affected).toBeLessThan(140);
});

test.each<[string, unknown, number, object?]>([
  ['no kind', {}, 422],
  ['an unknown kind', { kind: 'boom' }, 422],
  ['a rate above 1', { kind: 'hang', rate: 1.1 }, 422],
  ['more than 600 seconds', { kind: 'hang', seconds: 601 }, 422],
  ['an informational status', { kind: 'status', status: 103 }, 422],
  ['an unknown field', { kind: 'hang', speed: 1 }, 422],
  ['null', 'null', 422],
  ['malformed JSON', '{', 400],
  ['another media type', { kind: 'hang' }, 415, { 'content-type': 'text/plain' }],
  [
    'a content coding',
    { kind: 'hang' },
    415,
    { 'content-type': 'application/json', 'content-encoding': 'gzip' },
  ],
  ['a body over 100 kB', `{"kind":"${'x'.repeat(101_000)}"}`, 413],
])(
  'a fault with %s is rejected and changes nothing',
  async (_case, fault, status, headers = { 'content-type': 'application/json' }) => {
    await putFault(api2, { kind: 'status', status: 418 });
    const rejected = await putFault(api2, fault, headers);
    expect(rejected.status).toBe(status);
    expect(rejected.headers['content-type']).toBe('application/problem+json');
    expect(JSON.parse(rejected.text)).toMatchObject({ status, code: expect.any(String) });
    expect(JSON.parse((await call(`${api2.adminUrl}/fault`)).text)).toMatchObject({
      kind: 'status',
      status: 418,
    });
  },
);

test('without FAULTS=on, /fault does not exist', async () => {
  const api2 = await startProgram('api2');
  expect((await putFault(api2, { kind: 'hang' })).status).toBe(404);
  expect((await call(`${api2.url}/respond`)).status).toBe(200);
});

test('stopping first ends the fault, so delayed requests succeed and the process exits 0', async () => {
  const api2 = await startProgram('api2', { FAULTS: 'on' });
  await putFault(api2, { kind: 'hang' });
  const delayed = call(`${api2.url}/respond`);
  await sleep(100);
  expect(await api2.stop()).toBe(0);
  expect(await delayed).toMatchObject({ status: 200, text: 'Hello World!' });
});
