import { z } from 'zod';
import {
  type Env,
  faultsVariable,
  host,
  httpOrigin,
  milliseconds,
  onOff,
  readEnv,
  url,
  wholeNumber,
} from '../../chassis/settings';

export type Settings = ReturnType<typeof readSettings>;

// The requests for /data share one fetch, so few connections are needed.
const EXTERNAL_CONNECTIONS = 16;
// The addresses of external hosts rarely change, and a failed address triggers an immediate lookup.
const EXTERNAL_LOOKUP_INTERVAL_MS = 30_000;

// `URL.port` is empty for the default port of the scheme.
function portOf(origin: string) {
  const { port, protocol } = new URL(origin);
  return Number(port) || (protocol === 'https:' ? 443 : 80);
}

const hasNoCredentials = ({ username, password }: URL) => !username && !password;

const proxyUrl = () => url(['http:', 'https:'], 'a URL such as http://proxy:3128');

/**
 * Reads the settings of api from an environment object.
 * @throws {SettingsError} that lists every invalid variable
 */
export function readSettings(env: Env) {
  const { shared, own } = readEnv(env, {
    API2_URL: httpOrigin().default('http://api2:8080'),
    API2_FALLBACK_HOST: host().optional(),
    API2_TIMEOUT_MS: milliseconds().default(2000),
    API2_CONNECTIONS: wholeNumber(1, 65_535).default(64),
    MAX_IN_FLIGHT: wholeNumber(1, 1_000_000).default(1024),
    COLLAPSE: onOff().default(false),
    ...faultsVariable,
    EXTERNAL_URL: url(
      ['https:', 'http:'],
      'a URL such as https://example.org/data.json',
      hasNoCredentials,
    ).default('https://static-assets.codecademy.com/Courses/Learn-Node/http/data.json'),
    EXTERNAL_TIMEOUT_MS: milliseconds().default(5000),
    HTTPS_PROXY: proxyUrl().optional(),
    https_proxy: proxyUrl().optional(),
    NO_PROXY: z.string().optional(),
    no_proxy: z.string().optional(),
  });
  const externalUrl = new URL(own.EXTERNAL_URL);
  return {
    ...shared,
    api2: {
      origin: own.API2_URL,
      timeoutMs: own.API2_TIMEOUT_MS,
      connections: own.API2_CONNECTIONS,
    },
    collapse: own.COLLAPSE,
    faults: own.FAULTS,
    api2Fallback: own.API2_FALLBACK_HOST
      ? { host: own.API2_FALLBACK_HOST, port: portOf(own.API2_URL) }
      : undefined,
    maxInFlight: own.MAX_IN_FLIGHT,
    externalPath: externalUrl.pathname + externalUrl.search,
    external: {
      origin: externalUrl.origin,
      timeoutMs: own.EXTERNAL_TIMEOUT_MS,
      connections: EXTERNAL_CONNECTIONS,
      lookupIntervalMs: EXTERNAL_LOOKUP_INTERVAL_MS,
    },
    // Lowercase names take precedence, as in curl and undici.
    proxy: { proxyUrl: own.https_proxy ?? own.HTTPS_PROXY, noProxy: own.no_proxy ?? own.NO_PROXY },
  };
}
