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
import { startedPrograms } from './programs';

const started = startedPrograms();
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

async function listening(server: Server, host = '127.0.0.1') {
  servers.push(server.listen(0, host));
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** An external API over HTTPS whose certificate the private CA signed for `name`. */
async function httpsApi(name: string) {
  const signer = { key: ca.private, cert: ca.cert };
  const names = { name: 'subjectAltName' as const, altNames: [{ type: 2 as const, value: name }] };
  const { private: key, cert } = await certificate(name, [names], signer);
  const server = createHttpsServer({ key, cert }, (_req, res) => {
    res.writeHead(200, { 'content-type': 'application/json' }).end('{"a":1}');
  });
  return `https://localhost:${await listening(server, 'localhost')}/data.json`;
}

async function data(env: Record<string, string>) {
  const api = await started('api', { API2_URL: 'http://127.0.0.1:9', ...env });
  const { statusCode, headers, body } = await request(`${api.url}/data`);
  return { status: statusCode, body: (await body.json()) as Record<string, unknown>, headers };
}

test('over HTTPS with a private CA that is trusted: 200', async () => {
  const answer = await data({ EXTERNAL_URL: await httpsApi('localhost'), NODE_EXTRA_CA_CERTS: caFile });
  expect(answer).toMatchObject({ status: 200, body: { a: 1 } });
});

test('with a certificate of a CA that is not trusted: 502 tls_certificate_error', async () => {
  const answer = await data({ EXTERNAL_URL: await httpsApi('localhost') });
  expect(answer).toMatchObject({ status: 502, body: { code: 'tls_certificate_error' } });
  expect(answer.headers['proxy-status']).toBe('api; error=tls_certificate_error; next-hop=external');
});

test('with a certificate for another name: 502 tls_certificate_error', async () => {
  const answer = await data({ EXTERNAL_URL: await httpsApi('other.invalid'), NODE_EXTRA_CA_CERTS: caFile });
  expect(answer).toMatchObject({ status: 502, body: { code: 'tls_certificate_error' } });
});

test('with a server that never finishes the TLS handshake: 504 connection_timeout', async () => {
  const port = await listening(
    createServer(() => {}),
    'localhost',
  );
  const EXTERNAL_URL = `https://localhost:${port}/`;
  const startedMs = performance.now();
  expect(await data({ EXTERNAL_URL, EXTERNAL_TIMEOUT_MS: '800' })).toMatchObject({
    status: 504,
    body: { code: 'connection_timeout' },
  });
  expect(performance.now() - startedMs).toBeLessThan(2000);
});

test('with a server that speaks no TLS: 502 http_protocol_error', async () => {
  const port = await listening(
    createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')),
    'localhost',
  );
  const answer = await data({ EXTERNAL_URL: `https://localhost:${port}/` });
  expect(answer).toMatchObject({ status: 502, body: { code: 'http_protocol_error' } });
});

test('offline, with a name that nobody knows: 502 dns_error', async () => {
  const answer = await data({ EXTERNAL_URL: 'https://nowhere.invalid/data.json' });
  expect(answer).toMatchObject({ status: 502, body: { code: 'dns_error' } });
});

test('1000 concurrent clients cost one request to an API that takes 800 ms, and all get its JSON', async () => {
  let requests = 0;
  let arrived = () => {};
  const allArrived = new Promise<void>((resolve) => {
    arrived = resolve;
  });
  const server = createHttpServer(async (_req, res) => {
    requests++;
    // On a busy machine, the last clients may need longer than that to arrive.
    await Promise.all([allArrived, setTimeout(800)]);
    res.writeHead(200, { 'content-type': 'application/json' }).end('{"a":1}');
  });
  const EXTERNAL_URL = `http://127.0.0.1:${await listening(server)}/data.json`;
  // A quarter of the timeout is long enough that there is no hedge.
  const env = { API2_URL: 'http://127.0.0.1:9', EXTERNAL_URL, EXTERNAL_TIMEOUT_MS: '40000' };
  const api = await started('api', env);
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

  async function proxy() {
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
    return `http://127.0.0.1:${await listening(server)}`;
  }

  test('carries the request in a tunnel, end to end encrypted', async () => {
    const EXTERNAL_URL = await httpsApi('localhost');
    const env = { EXTERNAL_URL, NODE_EXTRA_CA_CERTS: caFile, HTTPS_PROXY: await proxy() };
    expect(await data(env)).toMatchObject({ status: 200, body: { a: 1 } });
    expect(tunnels).toEqual([new URL(EXTERNAL_URL).host]);
  });

  test('is passed by for the hosts of NO_PROXY', async () => {
    const env = {
      NODE_EXTRA_CA_CERTS: caFile,
      HTTPS_PROXY: await proxy(),
      NO_PROXY: 'example.org,localhost',
    };
    expect(await data({ ...env, EXTERNAL_URL: await httpsApi('localhost') })).toMatchObject({ status: 200 });
    expect(tunnels).toEqual([]);
  });

  test('is also read in lowercase, which takes precedence over uppercase', async () => {
    const EXTERNAL_URL = await httpsApi('localhost');
    const env = {
      EXTERNAL_URL,
      NODE_EXTRA_CA_CERTS: caFile,
      https_proxy: await proxy(),
      HTTPS_PROXY: 'http://127.0.0.1:9',
    };
    expect(await data(env)).toMatchObject({ status: 200, body: { a: 1 } });
    expect(tunnels).toEqual([new URL(EXTERNAL_URL).host]);
  });

  test('is bypassed for the hosts of no_proxy, which takes precedence over NO_PROXY', async () => {
    const env = {
      NODE_EXTRA_CA_CERTS: caFile,
      HTTPS_PROXY: await proxy(),
      no_proxy: 'example.org,localhost',
      NO_PROXY: 'example.org',
    };
    expect(await data({ ...env, EXTERNAL_URL: await httpsApi('localhost') })).toMatchObject({ status: 200 });
    expect(tunnels).toEqual([]);
  });

  test('that is not there: 502, and the log tells why', async () => {
    const env = { EXTERNAL_URL: 'https://localhost:9/', HTTPS_PROXY: 'http://127.0.0.1:9' };
    expect(await data(env)).toMatchObject({ status: 502, body: { code: 'connection_refused' } });
  });

  test('that refuses the tunnel: 502 proxy_internal_error', async () => {
    const server = createHttpServer();
    server.on('connect', (_req, client) => client.end('HTTP/1.1 403 Forbidden\r\n\r\n'));
    const env = {
      EXTERNAL_URL: 'https://localhost:9/',
      HTTPS_PROXY: `http://127.0.0.1:${await listening(server)}`,
    };
    expect(await data(env)).toMatchObject({ status: 502, body: { code: 'proxy_internal_error' } });
  });
});
