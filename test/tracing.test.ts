import { createServer, type IncomingMessage } from 'node:http';
import { request } from 'undici';
import { type Program, start } from './programs';
import { httpHop } from './stub-hop';

interface OtlpSpan {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  status: { code?: number };
  attributes: { key: string; value: Record<string, unknown> }[];
  service: string;
}

interface OtlpRequest {
  resourceSpans: {
    resource: { attributes: { key: string; value: { stringValue?: string } }[] };
    scopeSpans: { spans: OtlpSpan[] }[];
  }[];
}

const SERVER = 2;
const CLIENT = 3;
const ERROR = 2;
const cleanups: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** A collector that takes OTLP/HTTP in JSON. */
async function collector() {
  const spans: OtlpSpan[] = [];
  const hop = await httpHop((req, res) => {
    read(req).then((text) => {
      for (const { resource, scopeSpans } of (JSON.parse(text) as OtlpRequest).resourceSpans) {
        const service =
          resource.attributes.find(({ key }) => key === 'service.name')?.value.stringValue ?? '';
        for (const span of scopeSpans.flatMap((scope) => scope.spans)) spans.push({ ...span, service });
      }
      res.end('{}');
    });
  });
  cleanups.push(() => hop.close());
  return { origin: hop.origin, spans, requests: hop.requests };
}

async function read(req: IncomingMessage) {
  let text = '';
  for await (const chunk of req) text += chunk;
  return text;
}

async function started(service: 'api' | 'api2', env = {}): Promise<Program> {
  const program = await start(service, env);
  cleanups.push(async () => program.child.exitCode ?? program.stop('SIGKILL'));
  return program;
}

const attributesOf = (span: OtlpSpan | undefined) =>
  Object.fromEntries((span?.attributes ?? []).map(({ key, value }) => [key, Object.values(value)[0]]));

const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

async function get(url: string) {
  const { statusCode, body } = await request(url, { headers: { traceparent, tracestate: 'a=1' } });
  await body.dump();
  return statusCode;
}

test('with a collector, one request is one trace over both services', async () => {
  const { origin, spans } = await collector();
  const OTEL = { OTEL_EXPORTER_OTLP_ENDPOINT: origin };
  const api2 = await started('api2', { ...OTEL, OTEL_SERVICE_NAME: 'greeter' });
  const api = await started('api', { ...OTEL, API2_URL: api2.url });
  expect(await get(`${api.url}/hello`)).toBe(200);
  expect(await api.stop()).toBe(0);
  expect(await api2.stop()).toBe(0);
  const served = spans.find(({ service, kind }) => service === 'api' && kind === SERVER);
  const asked = spans.find(({ service, kind }) => service === 'api' && kind === CLIENT);
  const responded = spans.find(({ service, kind }) => service === 'greeter' && kind === SERVER);
  expect(spans).toHaveLength(3);
  for (const span of spans) expect(span.traceId).toBe('0af7651916cd43dd8448eb211c80319c');
  expect([served?.parentSpanId, asked?.parentSpanId, responded?.parentSpanId]).toEqual([
    'b7ad6b7169203331',
    served?.spanId,
    asked?.spanId,
  ]);
  expect([served?.name, asked?.name, responded?.name]).toEqual(['GET /hello', 'GET', 'GET /respond']);
  expect(attributesOf(served)).toMatchObject({
    'http.request.method': 'GET',
    'http.route': '/hello',
    'http.response.status_code': 200,
    'url.path': '/hello',
  });
  expect(attributesOf(asked)).toMatchObject({
    'http.request.method': 'GET',
    'http.response.status_code': 200,
    'server.address': '127.0.0.1',
    'server.port': api2.port,
    'peer.service': 'api2',
    'url.full': `${api2.url}/respond`,
  });
  for (const { lines } of [api, api2])
    expect(lines()).toContainEqual(expect.objectContaining({ traceId: '0af7651916cd43dd8448eb211c80319c' }));
});

test('a failed hop is marked as an error on both spans of api, retries as resends', async () => {
  const { origin, spans } = await collector();
  const api = await started('api', { OTEL_EXPORTER_OTLP_ENDPOINT: origin, API2_URL: 'http://127.0.0.1:9' });
  expect(await get(`${api.url}/hello`)).toBe(500);
  await api.stop();
  const served = spans.find(({ kind }) => kind === SERVER);
  const asked = spans.filter(({ kind }) => kind === CLIENT);
  expect(served?.status.code).toBe(ERROR);
  expect(attributesOf(served)).toMatchObject({
    'error.type': 'connection_refused',
    'http.response.status_code': 500,
  });
  expect(asked.map((span) => attributesOf(span)['http.request.resend_count'])).toEqual([undefined, 1, 2]);
  for (const span of asked) {
    expect(span.status.code).toBe(ERROR);
    expect(attributesOf(span)).toMatchObject({ 'error.type': 'connection_refused' });
  }
});

test('OTEL_TRACES_SAMPLER=always_off sends nothing, but the trace goes on unsampled', async () => {
  const { origin, requests } = await collector();
  let seen: unknown;
  const hop = await httpHop((req, res) => {
    seen = req.headers;
    res.end();
  });
  cleanups.push(() => hop.close());
  const OTEL = { OTEL_EXPORTER_OTLP_ENDPOINT: origin, OTEL_TRACES_SAMPLER: 'always_off' };
  const api = await started('api', { ...OTEL, API2_URL: hop.origin });
  await get(`${api.url}/hello`);
  await api.stop();
  expect(requests()).toBe(0);
  expect(seen).toMatchObject({
    traceparent: expect.stringMatching(/^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00$/),
    tracestate: 'a=1',
  });
});

test.each(['dead', 'hanging'])(
  'a %s collector fails no request, and delays stopping by a second at most',
  async (kind) => {
    const hanging = createServer(() => {}).listen(0, '127.0.0.1');
    cleanups.push(async () => {
      hanging.closeAllConnections();
      hanging.close();
    });
    const address = hanging.address();
    const port = kind === 'dead' || address === null || typeof address === 'string' ? 9 : address.port;
    const api2 = await started('api2', { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}` });
    expect(await get(`${api2.url}/respond`)).toBe(200);
    const startedMs = performance.now();
    expect(await api2.stop()).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(1500);
    if (kind === 'dead')
      expect(api2.lines()).toContainEqual(expect.objectContaining({ msg: 'tracing failed' }));
  },
);

test('a client that is unsampled stays so', async () => {
  const { origin, requests } = await collector();
  const api2 = await started('api2', { OTEL_EXPORTER_OTLP_ENDPOINT: origin });
  const { body } = await request(`${api2.url}/respond`, {
    headers: { traceparent: traceparent.replace(/01$/, '00') },
  });
  await body.dump();
  await api2.stop();
  expect(requests()).toBe(0);
});
