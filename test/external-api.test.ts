import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { generate } from 'selfsigned';
import { Agent, request } from 'undici';
import { programStarter } from './programs';

const startProgram = programStarter();
const folder = mkdtempSync(join(tmpdir(), 'onehop-'));
const caFile = join(folder, 'ca.pem');
const servers: Server[] = [];
let ca: { private: string; cert: string };

beforeAll(async () => {
  const usage = { name: 'keyUsage' as const, keyCertSign: true, cRLSign: true };
  ca = await certificate('Private CA', [{ name: 'basicConstraints', cA: true }, usage]);
  writeFileSync(caFile, ca.cert);
});

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
});

afterAll(() => rmSync(folder, { recursive: true }));

type Extensions = NonNullable<NonNullable<Parameters<typeof generate>[1]>['extensions']>;

function certificate(name: string, extensions: Extensions, signer?: { key: string; cert: string }) {
  return generate([{ name: 'commonName', value: name }], {
    keyType: 'ec',
    algorithm: 'sha256',
    extensions,
    ...(signer && { ca: signer }),
  });
}

async function listen(server: Server, host = '127.0.0.1') {
  servers.push(server.listen(0, host));
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** Starts an HTTPS server whose certificate is for `name` and signed by the private CA; resolves to its URL. */
async function startHttpsApi(name: string) {
  const signer = { key: ca.private, cert: ca.cert };
  const names = { name: 'subjectAltName' as const, altNames: [{ type: 2 as const, value: name }] };
  const { private: key, cert } = await certificate(name, [names], signer);
  const server = createHttpsServer({ key, cert }, (_req, res) => {
    res.writeHead(200, { 'content-type': 'application/json' }).end('{"a":1}');
  });
  return `https://localhost:${await listen(server, 'localhost')}/data.json`;
}

async function requestData(env: Record<string, string>) {
  const api = await startProgram('api', { API2_URL: 'http://127.0.0.1:9', ...env });
  const { statusCode, headers, body } = await request(`${api.url}/data`);
  return { status: statusCode, body: (await body.json()) as Record<string, unknown>, headers };
}

test('HTTPS with a trusted private CA: 200', async () => {
  const response = await requestData({
    EXTERNAL_URL: await startHttpsApi('localhost'),
    NODE_EXTRA_CA_CERTS: caFile,
  });
  expect(response).toMatchObject({ status: 200, body: { a: 1 } });
});

test('certificate of an untrusted CA: 502 tls_certificate_error', async () => {
  const response = await requestData({ EXTERNAL_URL: await startHttpsApi('localhost') });
  expect(response).toMatchObject({ status: 502, body: { code: 'tls_certificate_error' } });
  expect(response.headers['proxy-status']).toBe('api; error=tls_certificate_error; next-hop=external');
});

test('certificate for another host name: 502 tls_certificate_error', async () => {
  const response = await requestData({
    EXTERNAL_URL: await startHttpsApi('other.invalid'),
    NODE_EXTRA_CA_CERTS: caFile,
  });
  expect(response).toMatchObject({ status: 502, body: { code: 'tls_certificate_error' } });
});

test('server that never completes the TLS handshake: 504 connection_timeout', async () => {
  const port = await listen(
    createServer(() => {}),
    'localhost',
  );
  const EXTERNAL_URL = `https://localhost:${port}/`;
  const response = await requestData({ EXTERNAL_URL, EXTERNAL_TIMEOUT_MS: '800' });
  expect(response).toMatchObject({ status: 504, body: { code: 'connection_timeout' } });
  const [, totalMs] = /total;dur=([\d.]+)/.exec(String(response.headers['server-timing'])) ?? [];
  expect(Number(totalMs)).toBeLessThan(1600);
});

test('server without TLS: 502 http_protocol_error', async () => {
  const port = await listen(
    createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')),
    'localhost',
  );
  const response = await requestData({ EXTERNAL_URL: `https://localhost:${port}/` });
  expect(response).toMatchObject({ status: 502, body: { code: 'http_protocol_error' } });
});

test('host name that does not resolve: 502 dns_error', async () => {
  const response = await requestData({ EXTERNAL_URL: 'https://nowhere.invalid/data.json' });
  expect(response).toMatchObject({ status: 502, body: { code: 'dns_error' } });
});

test('1000 concurrent clients share one request to an API that takes 800 ms, and all get its JSON', async () => {
  let requests = 0;
  let arrived = () => {};
  const allArrived = new Promise<void>((resolve) => {
    arrived = resolve;
  });
  const server = createHttpServer(async (_req, res) => {
    requests++;
    // On a busy machine, the last clients may need more than 800 ms to arrive.
    await Promise.all([allArrived, setTimeout(800)]);
    res.writeHead(200, { 'content-type': 'application/json' }).end('{"a":1}');
  });
  const EXTERNAL_URL = `http://127.0.0.1:${await listen(server)}/data.json`;
  // A quarter of the timeout is long enough that there is no hedge.
  const env = { API2_URL: 'http://127.0.0.1:9', EXTERNAL_URL, EXTERNAL_TIMEOUT_MS: '40000' };
  const api = await startProgram('api', env);
  const agent = new Agent({ connections: 1000 });
  const get = async () => {
    const { statusCode, body } = await agent.request({ origin: api.url, path: '/data', method: 'GET' });
    return `${statusCode} ${await body.text()}`;
  };
  const responses = Promise.all(Array.from({ length: 1000 }, get));
  const inFlight = async () => {
    const { body } = await request(`${api.adminUrl}/metrics`);
    return /^http_server_requests_in_flight (\d+)$/m.exec(await body.text())?.[1];
  };
  const deadlineMs = performance.now() + 15_000;
  while ((await inFlight()) !== '1000' && performance.now() < deadlineMs) await setTimeout(50);
  expect(await inFlight()).toBe('1000');
  arrived();
  expect(new Set(await responses)).toEqual(new Set(['200 {"a":1}']));
  expect(requests).toBe(1);
  await agent.close();
});

describe('HTTPS_PROXY', () => {
  const tunnels: string[] = [];

  async function startProxy() {
    tunnels.length = 0;
    const server = createHttpServer((_req, res) => void res.writeHead(400).end());
    server.on('connect', (req, client) => {
      tunnels.push(String(req.url));
      const target = connect(Number(String(req.url).split(':')[1]), 'localhost', () => {
        client.write('HTTP/1.1 200 Connection Established\r\n\r\n');
        target.pipe(client).pipe(target);
      });
      target.on('error', () => client.destroy());
      client.on('error', () => target.destroy());
    });
    return `http://127.0.0.1:${await listen(server)}`;
  }

  test('tunnels the request, so that TLS ends at the external API', async () => {
    const EXTERNAL_URL = await startHttpsApi('localhost');
    const env = { EXTERNAL_URL, NODE_EXTRA_CA_CERTS: caFile, HTTPS_PROXY: await startProxy() };
    expect(await requestData(env)).toMatchObject({ status: 200, body: { a: 1 } });
    expect(tunnels).toEqual([new URL(EXTERNAL_URL).host]);
  });

  test('is bypassed for the hosts of NO_PROXY', async () => {
    const env = {
      NODE_EXTRA_CA_CERTS: caFile,
      HTTPS_PROXY: await startProxy(),
      NO_PROXY: 'example.org,localhost',
    };
    expect(await requestData({ ...env, EXTERNAL_URL: await startHttpsApi('localhost') })).toMatchObject({
      status: 200,
    });
    expect(tunnels).toEqual([]);
  });

  test('is also read in lowercase, which takes precedence over uppercase', async () => {
    const EXTERNAL_URL = await startHttpsApi('localhost');
    const env = {
      EXTERNAL_URL,
      NODE_EXTRA_CA_CERTS: caFile,
      https_proxy: await startProxy(),
      HTTPS_PROXY: 'http://127.0.0.1:9',
    };
    expect(await requestData(env)).toMatchObject({ status: 200, body: { a: 1 } });
    expect(tunnels).toEqual([new URL(EXTERNAL_URL).host]);
  });

  test('is bypassed for the hosts of no_proxy, which takes precedence over NO_PROXY', async () => {
    const env = {
      NODE_EXTRA_CA_CERTS: caFile,
      HTTPS_PROXY: await startProxy(),
      no_proxy: 'example.org,localhost',
      NO_PROXY: 'example.org',
    };
    expect(await requestData({ ...env, EXTERNAL_URL: await startHttpsApi('localhost') })).toMatchObject({
      status: 200,
    });
    expect(tunnels).toEqual([]);
  });

  test('that refuses the connection: 502 connection_refused', async () => {
    const env = { EXTERNAL_URL: 'https://localhost:9/', HTTPS_PROXY: 'http://127.0.0.1:9' };
    expect(await requestData(env)).toMatchObject({ status: 502, body: { code: 'connection_refused' } });
  });

  test('that refuses the tunnel: 502 proxy_internal_error', async () => {
    const server = createHttpServer();
    server.on('connect', (_req, client) => client.end('HTTP/1.1 403 Forbidden\r\n\r\n'));
    const env = {
      EXTERNAL_URL: 'https://localhost:9/',
      HTTPS_PROXY: `http://127.0.0.1:${await listen(server)}`,
    };
    expect(await requestData(env)).toMatchObject({ status: 502, body: { code: 'proxy_internal_error' } });
  });
});
