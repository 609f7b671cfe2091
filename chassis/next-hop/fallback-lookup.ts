import type { LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { connect, isIPv6 } from 'node:net';
import { type Lookup, lookUpAll } from './addresses';

const CONNECT_TIMEOUT_MS = 500;

export interface Fallback {
  host: string;
  port: number;
}

/**
 * Returns a lookup for names that a DNS may report as unknown for a while after they exist. When the
 * name does not resolve, the lookup returns the address of `fallback` if a connection to it succeeds.
 * Otherwise it rejects with the error of the name, so that the client keeps the addresses it has.
 * @param onChange is called when the fallback comes into use (`true`) and when the name resolves again (`false`)
 */
export function fallbackLookup(
  fallback: Fallback,
  onChange: (inUse: boolean) => void,
  lookup: Lookup = lookUpAll,
): Lookup {
  let inUse = false;
  const report = (now: boolean) => {
    if (now !== inUse) onChange(now);
    inUse = now;
  };
  return async (hostname) => {
    try {
      const addresses = await lookup(hostname);
      report(false);
      return addresses;
    } catch (error) {
      const address = await reach(fallback);
      if (address === undefined) throw error;
      report(true);
      return [address];
    }
  };
}

// A name such as that of a ClusterIP service resolves even while nothing listens behind it.
async function reach({ host, port }: Fallback): Promise<LookupAddress | undefined> {
  const socket = connect({ host, port, signal: AbortSignal.timeout(CONNECT_TIMEOUT_MS) });
  try {
    await once(socket, 'connect');
    const { remoteAddress: address } = socket;
    return address === undefined ? undefined : { address, family: isIPv6(address) ? 6 : 4 };
  } catch {
    return undefined;
  } finally {
    socket.destroy();
  }
}
