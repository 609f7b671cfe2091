import type { Env } from '../chassis/settings';
import { readSettings as readApi } from './api/settings';
import { readSettings as readApi2 } from './api2/settings';

test('an empty environment results in the defaults', () => {
  expect(readApi({})).toEqual({
    host: '0.0.0.0',
    port: 8080,
    adminPort: 9090,
    logLevel: 'info',
    logFormat: 'json',
    drainMs: 0,
    shutdownTimeoutMs: 10_000,
    api2: { origin: 'http://api2:8080', timeoutMs: 2000, connections: 64 },
    collapse: false,
    faults: false,
    maxInFlight: 1024,
    externalPath: '/Courses/Learn-Node/http/data.json',
    external: {
      origin: 'https://static-assets.codecademy.com',
      timeoutMs: 5000,
      connections: 16,
      lookupIntervalMs: 30_000,
    },
    proxy: { proxyUrl: undefined, noProxy: undefined },
  });
  expect(readApi2({})).toMatchObject({
    port: 8080,
    greeting: 'Hello World!',
    databaseFile: 'data/books.db',
    databaseUrl: undefined,
    faults: false,
  });
});

test('an empty variable is treated as not set', () => {
  expect(readApi({ PORT: '', API2_URL: '' })).toEqual(readApi({}));
});

test.each<[string, Env, object]>([
  [
    'a trailing slash of an origin is removed',
    { API2_URL: 'http://api2.default/' },
    { api2: { origin: 'http://api2.default' } },
  ],
  ['port 0 is valid for both ports', { PORT: '0', ADMIN_PORT: '0' }, { port: 0, adminPort: 0 }],
  [
    'https_proxy and no_proxy are read',
    { https_proxy: 'http://lower:1', no_proxy: 'lower' },
    { proxy: { proxyUrl: 'http://lower:1', noProxy: 'lower' } },
  ],
  [
    'lowercase names take precedence over uppercase names',
    {
      https_proxy: 'http://lower:1',
      HTTPS_PROXY: 'http://upper:1',
      no_proxy: 'lower',
      NO_PROXY: 'upper',
    },
    { proxy: { proxyUrl: 'http://lower:1', noProxy: 'lower' } },
  ],
  [
    'uppercase names are used when the lowercase variables are empty',
    { https_proxy: '', HTTPS_PROXY: 'http://upper:1', no_proxy: '', NO_PROXY: 'upper' },
    { proxy: { proxyUrl: 'http://upper:1', noProxy: 'upper' } },
  ],
  [
    'the fallback of api2 has the port of its URL',
    { API2_URL: 'http://api2-pods:8081', API2_FALLBACK_HOST: 'api2' },
    { api2Fallback: { host: 'api2', port: 8081 } },
  ],
  [
    'the fallback of api2 has the default port of the scheme when the URL has no port',
    { API2_URL: 'http://api2-pods', API2_FALLBACK_HOST: 'api2' },
    { api2Fallback: { host: 'api2', port: 80 } },
  ],
  ['the value on enables a setting', { COLLAPSE: 'on' }, { collapse: true }],
])('%s', (_description, env, settings) => {
  expect(readApi(env)).toMatchObject(settings);
});

test.each([
  ['PORT', '65536', 'a whole number from 0 to 65535'],
  ['PORT', '-1', 'a whole number'],
  ['PORT', '80.5', 'a whole number'],
  ['PORT', '1e3', 'a whole number'],
  ['PORT', ' 80', 'a whole number'],
  ['PORT', '9090', 'a port other than PORT'],
  ['HOST', 'a b', 'an IP address or a host name'],
  ['LOG_LEVEL', 'loud', 'one of fatal, error, warn'],
  ['DRAIN_MS', '2147483648', 'a whole number from 0 to 2147483647'],
  ['SHUTDOWN_TIMEOUT_MS', '0', 'a whole number from 1'],
  ['API2_URL', 'api2:8080', 'an origin such as http://api2:8080'],
  ['API2_URL', 'ftp://api2', 'an origin'],
  ['API2_URL', 'http://api2/path', 'an origin'],
  ['API2_FALLBACK_HOST', 'http://api2', 'an IP address or a host name'],
  ['API2_TIMEOUT_MS', '2s', 'a whole number'],
  ['API2_CONNECTIONS', '0', 'a whole number from 1'],
  ['MAX_IN_FLIGHT', '0', 'a whole number from 1'],
  ['COLLAPSE', 'true', '"on" or "off"'],
  ['EXTERNAL_URL', 'nowhere', 'a URL such as'],
  ['EXTERNAL_URL', 'https://user:secret@example.org/', 'a URL such as'],
  ['OTEL_EXPORTER_OTLP_ENDPOINT', 'localhost:4318', 'a URL such as http://localhost:4318'],
  ['OTEL_TRACES_SAMPLER', 'sometimes', 'one of always_on'],
  ['OTEL_TRACES_SAMPLER_ARG', '1.5', 'a ratio from 0 to 1'],
  ['OTEL_BSP_MAX_EXPORT_BATCH_SIZE', '0', 'a whole number from 1'],
  ['OTEL_BSP_SCHEDULE_DELAY', 'abc', 'a whole number from 1'],
  ['HTTPS_PROXY', 'socks://a', 'a URL such as http://proxy:3128'],
  ['https_proxy', 'socks://a', 'a URL such as http://proxy:3128'],
])('%s=%s is rejected with the expected value', (name, value, expected) => {
  const reported = name === 'PORT' && value === '9090' ? 'ADMIN_PORT' : name;
  expect(() => readApi({ [name]: value })).toThrow(`${reported}: expected ${expected}`);
});

test('one message lists every invalid variable and contains no password', () => {
  const read = () =>
    readApi2({ PORT: 'x', LOG_LEVEL: 'y', FAULTS: 'z', DATABASE_URL: 'mysql://user:secret@host' });
  expect(read).toThrow(/PORT.*\n.*LOG_LEVEL.*\n.*DATABASE_URL.*\n.*FAULTS/);
  expect(read).not.toThrow(/secret/);
});

test('an invalid https_proxy is reported by that name, without its password', () => {
  const read = () => readApi({ https_proxy: 'socks://user:secret@proxy' });
  expect(read).toThrow(/^ *https_proxy: expected a URL/m);
  expect(read).not.toThrow(/secret/);
});
