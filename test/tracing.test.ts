import { createServer, type IncomingMessage } from 'node:http';
import { request } from 'undici';
import { type Program, start } from './programs';
import { httpUpstream } from './stub-upstream';

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

/** Starts a collector that accepts OTLP/HTTP in JSON and keeps the spans. */
async function startCollector() {
  const spans: OtlpSpan[] = [];
  const upstream = await httpUpstream((req, res) => {
    readBody(req).then((text) => {
      for (const { resource, scopeSpans } of (JSON.parse(text) as OtlpRequest).resourceSpans) {
        const service =
          resource.attributes.find(({ key }) => key === 'service.name')?.value.stringValue ?? '';
        for (const span of scopeSpans.flatMap((scope) => scope.spans)) spans.push({ ...span, service });
      }
      res.end('{}');
    });
  });
  cleanups.push(() => upstream.close());
  return { origin: upstream.origin, spans, requests: upstream.requests };
}

async function readBody(req: IncomingMessage) {
  let text = '';
  for await (const chunk of req) text += chunk;
  return text;
}

async function startProgram(service: 'api' | 'api2', env = {}): Promise<Program> {
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

test('a request produces one trace with spans of both services', async () => {
  const { origin, spans } = await startCollector();
  const OTEL = { OTEL_EXPORTER_OTLP_ENDPOINT: origin };
  const api2 = await startProgram('api2', { ...OTEL, OTEL_SERVICE_NAME: 'greeter' });
  const api = await startProgram('api', { ...OTEL, API2_URL: api2.url });
  expect(await get(`${api.url}/hello`)).toBe(200);
  expect(await api.stop()).toBe(0);
  expect(await api2.stop()).toBe(0);
  const apiServer = spans.find(({ service, kind }) => service === 'api' && kind === SERVER);
  const apiClient = spans.find(({ service, kind }) => service === 'api' && kind === CLIENT);
  const api2Server = spans.find(({ service, kind }) => service === 'greeter' && kind === SERVER);
  expect(spans).toHaveLength(3);
  for (const span of spans) expect(span.traceId).toBe('0af7651916cd43dd8448eb211c80319c');
  expect([apiServer?.parentSpanId, apiClient?.parentSpanId, api2Server?.parentSpanId]).toEqual([
    'b7ad6b7169203331',
    apiServer?.spanId,
    apiClient?.spanId,
  ]);
  expect([apiServer?.name, apiClient?.name, api2Server?.name]).toEqual(['GET /hello', 'GET', 'GET /respond']);
  expect(attributesOf(apiServer)).toMatchObject({
    'http.request.method': 'GET',
    'http.route': '/hello',
    'http.response.status_code': 200,
    'url.path': '/hello',
  });
  expect(attributesOf(apiClient)).toMatchObject({
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

test('a failed hop sets an error on the server and client spans of api, and each retry has its resend count', async () => {
  const { origin, spans } = await startCollector();
  const api = await startProgram('api', {
    OTEL_EXPORTER_OTLP_ENDPOINT: origin,
    API2_URL: 'http://127.0.0.1:9',
  });
  expect(await get(`${api.url}/hello`)).toBe(500);
  await api.stop();
  const apiServer = spans.find(({ kind }) => kind === SERVER);
  const clientSpans = spans.filter(({ kind }) => kind === CLIENT);
  expect(apiServer?.status.code).toBe(ERROR);
  expect(attributesOf(apiServer)).toMatchObject({
    'error.type': 'connection_refused',
    'http.response.status_code': 500,
  });
  expect(clientSpans.map((span) => attributesOf(span)['http.request.resend_count'])).toEqual([
    undefined,
    1,
    2,
  ]);
  for (const span of clientSpans) {
    expect(span.status.code).toBe(ERROR);
    expect(attributesOf(span)).toMatchObject({ 'error.type': 'connection_refused' });
  }
});

test('with OTEL_TRACES_SAMPLER=always_off, api exports nothing and forwards the trace as unsampled', async () => {
  const { origin, requests } = await startCollector();
  let seen: unknown;
  const upstream = await httpUpstream((req, res) => {
    seen = req.headers;
    res.end();
  });
  cleanups.push(() => upstream.close());
  const OTEL = { OTEL_EXPORTER_OTLP_ENDPOINT: origin, OTEL_TRACES_SAMPLER: 'always_off' };
  const api = await startProgram('api', { ...OTEL, API2_URL: upstream.origin });
  await get(`${api.url}/hello`);
  await api.stop();
  expect(requests()).toBe(0);
  expect(seen).toMatchObject({
    traceparent: expect.stringMatching(/^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00$/),
    tracestate: 'a=1',
  });
});

test.each(['closed', 'hanging'])(
  'with a %s collector port, requests succeed and shutdown is delayed by at most a second',
  async (kind) => {
    const hanging = createServer(() => {}).listen(0, '127.0.0.1');
    cleanups.push(async () => {
      hanging.closeAllConnections();
      hanging.close();
    });
    const address = hanging.address();
    const port = kind === 'closed' || address === null || typeof address === 'string' ? 9 : address.port;
    const api2 = await startProgram('api2', { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}` });
    expect(await get(`${api2.url}/respond`)).toBe(200);
    const startedMs = performance.now();
    expect(await api2.stop()).toBe(0);
    expect(performance.now() - startedMs).toBeLessThan(1500);
    if (kind === 'closed')
      expect(api2.lines()).toContainEqual(expect.objectContaining({ msg: 'tracing failed' }));
  },
);

test('an unsampled trace of a client stays unsampled', async () => {
  const { origin, requests } = await startCollector();
  const api2 = await startProgram('api2', { OTEL_EXPORTER_OTLP_ENDPOINT: origin });
  const { body } = await request(`${api2.url}/respond`, {
    headers: { traceparent: traceparent.replace(/01$/, '00') },
  });
  await body.dump();
  await api2.stop();
  expect(requests()).toBe(0);
});
