import { once } from 'node:events';
import { createServer, type RequestListener, type Server } from 'node:http';

/**
 * Time-outs against slow and silent clients, in milliseconds. Node checks them only every
 * `connectionsCheckingInterval`, which is 30 s unless told.
 */
export const TIMEOUTS = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 1000,
  // Longer than the 30 s of our own client and the 60 s of the usual load balancers: whoever asks also closes.
  keepAliveTimeout: 65_000,
};

/** A server for `app`, not listening yet. */
export function serverFor(app: RequestListener, timeouts = TIMEOUTS): Server {
  return createServer(timeouts, app);
}

/** A port that can't be had, in one plain sentence. */
export class ListenError extends Error {}

/**
 * Listens, and resolves to the port.
 * @throws {ListenError}
 */
export async function listen(server: Server, host: string, port: number): Promise<number> {
  server.listen(port, host);
  try {
    await once(server, 'listening');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === 'EADDRINUSE' ? 'it is taken (EADDRINUSE)' : message;
    throw new ListenError(`Cannot listen on port ${port} of ${host}: ${reason}`);
  }
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : port;
}

/** Takes no new connections, closes idle ones, and resolves when the last request is answered. */
export async function finish(server: Server) {
  if (!server.listening) return;
  const closed = once(server, 'close');
  server.close();
  // An answer whose headers were out before its connection was to end leaves an idle connection behind.
  const idle = setInterval(() => server.closeIdleConnections(), 50);
  await closed;
  clearInterval(idle);
}
