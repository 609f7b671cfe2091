import type { RequestListener } from 'node:http';
import { NextHop, type NextHopOptions } from 'next-hop';
import { httpUpstream, rawUpstream } from '../../../test/stub-upstream';

type Cleanup = () => unknown;

/** Creates clients and next hops for the tests of one file, and closes them after each test. */
export function testClients() {
  const cleanups: Cleanup[] = [];
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  });
  const cleanUp = (cleanup: Cleanup) => void cleanups.push(cleanup);

  return {
    cleanUp,
    client<Context = unknown>(origin: string, options: NextHopOptions<Context> = {}) {
      const client = new NextHop<Context>(origin, { timeoutMs: 1000, ...options });
      cleanUp(() => client.destroy());
      return client;
    },
    async server(listener: RequestListener, host?: string, port?: number) {
      const server = await httpUpstream(listener, host, port);
      cleanUp(() => server.close());
      return server;
    },
    async rawServer(...args: Parameters<typeof rawUpstream>) {
      const server = await rawUpstream(...args);
      cleanUp(() => server.close());
      return server;
    },
  };
}

/** A lookup with these addresses as its result. */
export const lookupOf = (addresses: readonly string[]) => async () =>
  addresses.map((address) => ({ address, family: 4 }));

export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Resolves when `condition` is true, and rejects if it is not within `timeoutMs`. */
export async function until(condition: () => boolean, timeoutMs = 5000) {
  const endMs = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`not within ${timeoutMs} ms: ${condition}`);
    await sleep(5);
  }
}
