import type { LookupAddress } from 'node:dns';
import { once } from 'node:events';
import { connect, isIPv6 } from 'node:net';
import { type Lookup, lookUpAll } from 'next-hop';

const CONNECT_TIMEOUT_MS = 500;

export interface Fallback {
  host: string;
  port: number;
}

/**
 * Returns a lookup for names that DNS may still report as unknown after they have been created. When the
 * name does not resolve, the lookup returns the address of `fallback` if a connection to it succeeds.
 * Otherwise it rejects with the original lookup error, so that the client keeps the addresses it has.
 * @param onChange is called when the fallback is first used (`true`) and when the name resolves again (`false`)
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
      const address = await probeFallback(fallback);
      if (address === undefined) throw error;
      report(true);
      return [address];
    }
  };
}

// The name of a ClusterIP service resolves even while no pod listens, so only a connection shows that one does.
async function probeFallback({ host, port }: Fallback): Promise<LookupAddress | undefined> {
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
