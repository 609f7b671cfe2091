import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { NextHop } from './next-hop';

const CONCURRENCY = 3;
const REQUESTS = 60;
const REFUSED_REQUESTS = 6;
const TIMEOUT_MS = 80;
/** Longer than the hedge delay, a quarter of the timeout. */
const SLOW_RESPONSE_MS = 30;
const HOST = '127.0.0.1';
// Both reach the server. On a system without IPv6, connections to the second one fail.
const ADDRESSES = [
  { address: HOST, family: 4 },
  { address: `::ffff:${HOST}`, family: 6 },
];

/**
 * Prepares this process for its first failure: sends about 60 requests to a server of its own on 127.0.0.1 that closes
 * connections, responds with 503 and is slow. V8 optimizes code for what has happened so far. Without this, it
 * deoptimizes much of that code at the first failure, and requests take longer until it is compiled again. Call it once,
 * before the process accepts requests. It takes about 0.2 s.
 * @throws {Error} if the server cannot listen on 127.0.0.1
 */
export async function warmUp(): Promise<void> {
  let requests = 0;
  const server = createServer((_req, res) => respond(++requests, res));
  // Not shared with the other workers of a cluster.
  server.listen({ host: HOST, port: 0, exclusive: true });
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const hop = new NextHop(`http://warm-up.invalid:${port}`, {
    timeoutMs: TIMEOUT_MS,
    lookup: async () => ADDRESSES,
  });
  await sendRequests(hop, REQUESTS);
  const closed = once(server, 'close');
  server.close();
  server.closeAllConnections();
  await closed;
  await sendRequests(hop, REFUSED_REQUESTS);
  await hop.close();
}

/** Responds to most requests with success, and fails in several ways in between. */
function respond(number: number, res: ServerResponse) {
  if (number % 7 === 3) res.destroy();
  else if (number % 7 === 6) res.socket?.resetAndDestroy();
  else if (number % 11 === 5) res.writeHead(503).end();
  else if (number % 13 === 7) setTimeout(() => res.end(), SLOW_RESPONSE_MS);
  else res.end('text');
}

/** Sends `count` requests, a few at a time, and resolves when all have ended. Some fail, as they should. */
async function sendRequests(hop: NextHop, count: number) {
  const sendShare = async () => {
    for (let sent = 0; sent < count / CONCURRENCY; sent++) await hop.get('/').catch(() => {});
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, sendShare));
}
