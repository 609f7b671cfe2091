import { EnvHttpProxyAgent } from 'undici';

export interface ProxyOptions {
  /** `HTTPS_PROXY`: the proxy for requests to https origins; undefined if they are sent directly. */
  proxyUrl: string | undefined;
  /** `NO_PROXY`: hosts that are reached directly. */
  noProxy: string | undefined;
}

/** Returns a `factory` that makes a `NextHop` send its requests through a proxy, or undefined if none is configured. */
export function proxyFactory({ proxyUrl, noProxy = '' }: ProxyOptions) {
  if (proxyUrl === undefined) return undefined;
  // undici reads omitted options from the environment.
  const proxies = { httpProxy: '', httpsProxy: proxyUrl, noProxy };
  return (_origin: URL, { connections }: { connections: number }) =>
    new EnvHttpProxyAgent({ ...proxies, connections, pipelining: 1, headersTimeout: 0, bodyTimeout: 0 });
}
