import { once } from 'node:events';
import { createServer as createHttpServer, type RequestListener } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';

/** An upstream server on a real socket, for tests. */
export interface StubUpstream {
  origin: string;
  port: number;
  /** The number of requests received so far. */
  requests: () => number;
  /** The number of connections accepted so far. */
  connections: () => number;
  close: () => Promise<void>;
}

/** Calls `onRequest` for each request head that arrives, with the request's number from 1; it writes raw bytes. */
export async function rawUpstream(
  onRequest: (socket: Socket, request: number) => void,
  host = '127.0.0.1',
  port = 0,
): Promise<StubUpstream> {
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
  return listen(server, () => requests, host, port);
}

/** Responds through Node's HTTP server. */
export async function httpUpstream(
  listener: RequestListener,
  host = '127.0.0.1',
  port = 0,
): Promise<StubUpstream> {
  let requests = 0;
  const server = createHttpServer({ keepAliveTimeout: 60_000 }, (req, res) => {
    requests++;
    listener(req, res);
  });
  return listen(server, () => requests, host, port);
}

/**
 * A port below Linux's ephemeral range (from 32768 by default), so that the kernel does not assign it to another socket
 * before the test listens on it.
 */
const randomPort = () => 10_000 + Math.floor(Math.random() * 20_000);

/** A loopback port on which no program listens. */
export async function closedPort(): Promise<number> {
  const upstream = await rawUpstream(() => {});
  await upstream.close();
  return upstream.port;
}

async function listen(
  server: Server,
  requests: () => number,
  host = '127.0.0.1',
  port = 0,
): Promise<StubUpstream> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on('connection', (socket) => {
    connections++;
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
  });
  for (let tries = 0; ; tries++)
    try {
      await once(server.listen(port === 0 ? randomPort() : port, host), 'listening');
      break;
    } catch (error) {
      if (port !== 0 || tries === 10) throw error;
    }
  const address = server.address();
  const boundPort = typeof address === 'object' && address !== null ? address.port : 0;
  return {
    origin: `http://${host}:${boundPort}`,
    port: boundPort,
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
