import type { Dispatcher } from 'undici';
import { proxyAgent } from './undici';

export interface ProxyOptions {
  /** `HTTPS_PROXY`: carries requests to https origins; undefined where they go directly. */
  proxyUrl: string | undefined;
  /** `NO_PROXY`: hosts that are reached directly. */
  noProxy: string | undefined;
  connections: number;
}

/** What carries requests through a proxy; undefined where there is none. */
export function proxyOf({ proxyUrl, noProxy = '', connections }: ProxyOptions): Dispatcher | undefined {
  if (proxyUrl === undefined) return undefined;
  // What is left out here, undici would take from the environment.
  const proxies = { httpProxy: '', httpsProxy: proxyUrl, noProxy };
  return proxyAgent({ ...proxies, connections, pipelining: 1, headersTimeout: 0, bodyTimeout: 0 });
}
