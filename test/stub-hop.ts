import { once } from 'node:events';
import { createServer as createHttpServer, type RequestListener } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';

/** A next hop on a real socket, for tests. */
export interface StubHop {
  origin: string;
  port: number;
  /** Requests whose head arrived so far, on raw hops. */
  requests: () => number;
  /** Connections accepted so far. */
  connections: () => number;
  close: () => Promise<void>;
}

/** Speaks raw bytes: `onRequest` is called for each request head that arrives, with its number from 1. */
export async function rawHop(
  onRequest: (socket: Socket, request: number) => void,
  host = '127.0.0.1',
  port = 0,
): Promise<StubHop> {
  let requests = 0;
  const server = createServer((socket) => {
    let head = '';
    socket.on('error', () => {});
    socket.on('data', (data) => {
      head += data.toString('latin1');
      const end = head.indexOf('\r\n\r\n');
      if (end < 0) return;
      head = head.slice(end + 4);
      onRequest(socket, ++requests);
    });
  });
  return listening(server, () => requests, host, port);
}

/** Speaks HTTP through Node's own server. */
export async function httpHop(listener: RequestListener, host = '127.0.0.1', port = 0): Promise<StubHop> {
  let requests = 0;
  const server = createHttpServer({ keepAliveTimeout: 60_000 }, (req, res) => {
    requests++;
    listener(req, res);
  });
  return listening(server, () => requests, host, port);
}

/** A port of this machine where nobody listens. */
export async function deadPort(): Promise<number> {
  const hop = await rawHop(() => {});
  await hop.close();
  return hop.port;
}

async function listening(
  server: Server,
  requests: () => number,
  host = '127.0.0.1',
  port = 0,
): Promise<StubHop> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on('connection', (socket) => {
    connections++;
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  server.listen(port, host);
  await once(server, 'listening');
  const address = server.address();
  const bound = typeof address === 'object' && address !== null ? address.port : 0;
  return {
    origin: `http://${host}:${bound}`,
    port: bound,
    requests,
    connections: () => connections,
    close: async () => {
      const closed = once(server, 'close');
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}
