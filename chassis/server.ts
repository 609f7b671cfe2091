import { once } from 'node:events';
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import { Server as NetServer, type Socket } from 'node:net';
import { classesFor } from './express-classes';

/**
 * Time-outs against slow and silent clients, in milliseconds. Node checks the first two only every
 * `connectionsCheckingInterval`, which is 30 s unless told.
 */
export const TIMEOUTS = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 1000,
  /** For a connection without a request: longer than the 30 s of our own client and the 60 s of the usual load balancers, as whoever asks also closes. */
  idleTimeout: 65_000,
  /** For a client that takes nothing of its answer. */
  unreadTimeout: 30_000,
};

// Connections that wait to be accepted, as many as Linux allows unless told: of a burst beyond Node's 511,
// some would be made only after a second.
const BACKLOG = 4096;

// libuv reads up to 49,152 sockets before it lets the turn of the event loop go on, to timers, new connections
// and the log. Of clients that ask again at once a turn would take seconds, and what is under way to a next hop
// would miss its deadline; so those past the first of a turn wait for the next.
const MOST_PER_TURN = 64;

// Of one connection, without an answer. Nobody pipelines that many, and Node reads on while they only wait.
const MOST_PIPELINED = 128;

// How often within `unreadTimeout` all connections are looked at.
const CHECKS = 5;

/** What is known of a connection. */
interface Connection {
  /** Requests without a whole answer yet. */
  requests: number;
  /** Bytes that waited to be sent at the last check, and how many checks in a row found as many. */
  unsent: number;
  unreadChecks: number;
  /** Bytes that had come at the last check, and how many checks in a row found no more and no request. */
  received: number;
  idleChecks: number;
}

/** A port that can't be had, in one plain sentence. */
export class ListenError extends Error {}

/** An HTTP server that cuts off slow and silent clients, and ends without cutting an answer. */
export class HttpServer {
  private readonly server: Server;
  private readonly connections = new Map<Socket, Connection>();
  private readonly mostIdleChecks: number;
  private handledInTurn = 0;
  private readonly waiting: [IncomingMessage, ServerResponse][] = [];
  private isFinishing = false;

  constructor(
    private readonly app: RequestListener,
    { unreadTimeout, idleTimeout, ...timeouts } = TIMEOUTS,
  ) {
    const everyMs = unreadTimeout / CHECKS;
    // Node's own time-outs for sockets, set anew with each request, cost a tenth of all requests per second.
    const own = { keepAliveTimeout: 0, optimizeEmptyRequests: true };
    this.server = createServer({ ...timeouts, ...own, ...classesFor(app) }, (req, res) => {
      if (!this.began(req.socket, res)) return;
      if (!req.url?.startsWith('/')) req.url = originForm(req);
      this.handle(req, res);
    });
    this.server.on('connection', (socket: Socket) => {
      this.connections.set(socket, { requests: 0, unsent: 0, unreadChecks: 0, received: 0, idleChecks: 0 });
      socket.once('close', () => this.connections.delete(socket));
    });
    // The first check may come at once.
    this.mostIdleChecks = Math.ceil(idleTimeout / everyMs) + 1;
    const check = setInterval(() => this.check(), everyMs).unref();
    this.server.once('close', () => clearInterval(check));
  }

  /**
   * Listens, and resolves to the port.
   * @throws {ListenError}
   */
  async listen(host: string, port: number): Promise<number> {
    this.server.listen({ port, host, backlog: BACKLOG });
    try {
      await once(this.server, 'listening');
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const reason = code === 'EADDRINUSE' ? 'it is taken (EADDRINUSE)' : message;
      throw new ListenError(`Cannot listen on port ${port} of ${host}: ${reason}`);
    }
    const address = this.server.address();
    return typeof address === 'object' && address !== null ? address.port : port;
  }

  /** Takes no new connections, closes those without a request, and resolves when the last answer is out. */
  async finish() {
    if (!this.server.listening) return;
    this.isFinishing = true;
    const closed = once(this.server, 'close');
    // HTTP's own `close` ends the checks for slow clients, and connections whose answer is not all sent.
    NetServer.prototype.close.call(this.server);
    for (const [socket, { requests }] of this.connections) if (requests === 0) socket.destroySoon();
    await closed;
    this.server.close();
  }

  private began(socket: Socket, res: ServerResponse) {
    const connection = this.connections.get(socket);
    if (connection === undefined) return false;
    if (++connection.requests > MOST_PIPELINED) {
      socket.destroy();
      return false;
    }
    connection.idleChecks = 0;
    res.on('close', () => {
      connection.requests--;
      if (connection.requests === 0 && this.isFinishing) socket.destroySoon();
    });
    return true;
  }

  private handle(req: IncomingMessage, res: ServerResponse) {
    if (this.handledInTurn === MOST_PER_TURN) {
      this.waiting.push([req, res]);
      return;
    }
    if (this.handledInTurn++ === 0) setImmediate(() => this.nextTurn());
    // Its client may have left while it waited.
    if (!res.destroyed) this.app(req, res);
  }

  private nextTurn() {
    this.handledInTurn = 0;
    for (const [req, res] of this.waiting.splice(0, MOST_PER_TURN)) this.handle(req, res);
  }

  private check() {
    for (const [socket, connection] of this.connections) {
      count(socket, connection);
      const { unreadChecks, idleChecks } = connection;
      if (unreadChecks === CHECKS || idleChecks === this.mostIdleChecks) socket.destroy();
    }
  }
}

function count({ writableLength, bytesRead }: Socket, connection: Connection) {
  const isUnread = writableLength > 0 && writableLength === connection.unsent;
  connection.unsent = writableLength;
  connection.unreadChecks = isUnread ? connection.unreadChecks + 1 : 0;
  const isIdle = connection.requests === 0 && bytesRead === connection.received;
  connection.received = bytesRead;
  connection.idleChecks = isIdle ? connection.idleChecks + 1 : 0;
}

// A server takes a target with scheme and host too (RFC 9112, section 3.2.2), and Express does not take
// one whose host is malformed.
function originForm({ url = '' }: IncomingMessage) {
  const path = /^[a-z][a-z\d+.-]*:\/\/[^/?#]*(.*)$/i.exec(url)?.[1] ?? '/*';
  return path.startsWith('/') ? path : `/${path}`;
}
