import { once } from 'node:events';
import { createServer, IncomingMessage, type RequestListener, type Server, ServerResponse } from 'node:http';
import { Server as NetServer, type Socket } from 'node:net';
import { setImmediate as immediate } from 'node:timers/promises';
import { classesFor } from './express-classes';
import { Problem } from './problem';
import { lacksHost, missingHost, problemOfClientError, type Reject, unknownExpectation } from './rejection';

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

// Metrics label for unknown methods.
const UNKNOWN_METHOD = '_OTHER';

// How often within `unreadTimeout` all connections are looked at.
const CHECKS = 5;

// How long to keep reading after closing the write side, unless the client closes first. nginx's lingering_close
// does this for 5 s; one round trip is enough.
const LINGER_MS = 500;

// How long a connection accepted at the end of the drain may take to send its first request.
const FIRST_REQUEST_MS = 100;

// Maximum time to accept the remaining backlog before closing the port.
const MAX_ACCEPT_MS = 1000;

/** What is known of a connection. */
interface Connection {
  /** Deadline for the first request; 0 after it has arrived. */
  isNewUntilMs: number;
  /** The response to the latest request; undefined once request and response are complete. */
  latest: ServerResponse | undefined;
  /** The write side is closed or the parser failed; further input is discarded. */
  isClosing: boolean;
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
  private readonly classes;
  private isDraining = false;
  private isFinishing = false;
  private accepted = 0;

  constructor(
    private readonly app: RequestListener,
    { unreadTimeout, idleTimeout, ...timeouts }: typeof TIMEOUTS,
    private readonly reject: Reject,
  ) {
    this.classes = { IncomingMessage, ServerResponse, ...classesFor(app) };
    const everyMs = unreadTimeout / CHECKS;
    // Node's own time-outs for sockets, set anew with each request, cost a tenth of all requests per second.
    const own = { keepAliveTimeout: 0, optimizeEmptyRequests: true, requireHostHeader: false };
    this.server = createServer({ ...timeouts, ...own, ...this.classes }, (req, res) => {
      if (!this.began(req.socket, res)) return;
      if (lacksHost(req)) return this.rejectAndClose(res, missingHost());
      if (!req.url?.startsWith('/')) req.url = originForm(req);
      this.handle(req, res);
    });
    this.server.on('checkExpectation', (req, res) => {
      if (this.began(req.socket, res)) this.rejectAndClose(res, unknownExpectation());
    });
    this.server.on('clientError', (error, socket) => this.parserFailed(error, socket as Socket));
    this.server.on('connection', (socket: Socket) => this.connected(socket));
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

  /** From now on the response to the last request of each connection carries `Connection: close`. */
  drain() {
    this.isDraining = true;
    for (const { latest } of this.connections.values()) if (latest?.headersSent === false) closeAfter(latest);
  }

  /** Takes no new connections, closes those without a request, and resolves when the last answer is out. */
  async finish() {
    if (!this.server.listening) return;
    await this.acceptPending();
    this.isFinishing = true;
    this.drain();
    const closed = once(this.server, 'close');
    // HTTP's own `close` ends the checks for slow clients, and connections whose answer is not all sent.
    NetServer.prototype.close.call(this.server);
    for (const [socket, connection] of this.connections) this.closeIfIdle(socket, connection);
    await closed;
    this.server.close();
  }

  // Closing the port resets the connections that wait to be accepted, and libuv accepts one in each turn of
  // the event loop. Each turn also reads the data that has arrived on the others.
  private async acceptPending() {
    const startedMs = performance.now();
    let before: number;
    do {
      before = this.accepted;
      await immediate();
    } while (this.accepted > before && performance.now() - startedMs < MAX_ACCEPT_MS);
  }

  private connected(socket: Socket) {
    this.accepted++;
    this.connections.set(socket, {
      isNewUntilMs: performance.now() + FIRST_REQUEST_MS,
      latest: undefined,
      isClosing: false,
      requests: 0,
      unsent: 0,
      unreadChecks: 0,
      received: 0,
      idleChecks: 0,
    });
    socket.once('close', () => this.connections.delete(socket));
    // Node calls destroySoon after a response with `Connection: close`.
    socket.destroySoon = () => this.close(socket);
  }

  private began(socket: Socket, res: ServerResponse) {
    const connection = this.connections.get(socket);
    if (connection === undefined || connection.isClosing) return false;
    if (++connection.requests > MOST_PIPELINED) {
      socket.destroy();
      return false;
    }
    connection.idleChecks = 0;
    connection.isNewUntilMs = 0;
    if (this.isDraining) {
      // Otherwise the pipelined request after it would get no response.
      if (connection.latest?.headersSent === false) connection.latest.shouldKeepAlive = true;
      closeAfter(res);
    }
    connection.latest = res;
    res.on('close', () => {
      connection.requests--;
      if (connection.latest === res && res.req.complete) connection.latest = undefined;
      if (connection.requests === 0 && this.isFinishing) this.close(socket);
    });
    return true;
  }

  private closeIfIdle(socket: Socket, connection: Connection) {
    if (connection.requests > 0) return;
    const restMs = connection.isNewUntilMs - performance.now();
    if (restMs <= 0) return this.close(socket);
    const close = () => connection.requests === 0 && this.close(socket);
    // Process data that has already arrived before closing.
    setTimeout(() => setImmediate(close), restMs);
  }

  /**
   * Closes a connection in two steps (RFC 9112, section 9.6): if it were closed for reading immediately,
   * bytes that arrive would reset it, and the client would lose what it has not read yet.
   */
  private close(socket: Socket) {
    const connection = this.connections.get(socket);
    if (connection === undefined || socket.writableEnded) return;
    connection.isClosing = true;
    socket.end(() => {
      const timer = setTimeout(() => socket.destroy(), LINGER_MS).unref();
      socket.once('close', () => clearTimeout(timer));
    });
    socket.resume();
  }

  private rejectAndClose(res: ServerResponse, problem: Problem) {
    closeAfter(res);
    this.reject(res, problem);
  }

  // Node has neither a request nor a response for the bytes that its parser fails on, unless they belong to
  // the body of the latest request.
  private parserFailed(error: NodeJS.ErrnoException, socket: Socket) {
    const connection = this.connections.get(socket);
    if (connection === undefined || connection.isClosing) return;
    const { latest, requests } = connection;
    const problem = problemOfClientError(error, socket);
    if (problem === undefined) return void socket.destroy();
    connection.isClosing = true;
    if (latest === undefined || (requests === 0 && latest.req.complete)) this.rejectUnparsed(socket, problem);
    else if (requests === 0) this.close(socket);
    else if (latest.req.complete) latest.once('close', () => this.rejectUnparsed(socket, problem));
    else if (latest.writableEnded) latest.once('close', () => this.close(socket));
    else if (error.code === 'HPE_INVALID_EOF_STATE') socket.destroy();
    else this.rejectAndClose(latest, problem);
  }

  private rejectUnparsed(socket: Socket, problem: Problem) {
    if (!socket.writable) return;
    const req = new this.classes.IncomingMessage(socket);
    req.method = UNKNOWN_METHOD;
    req.url = '/';
    const res = new this.classes.ServerResponse(req);
    res.assignSocket(socket);
    res.once('finish', () => {
      res.detachSocket(socket);
      res.emit('close');
      this.close(socket);
    });
    this.rejectAndClose(res, problem);
  }

  private handle(req: IncomingMessage, res: ServerResponse) {
    if (this.handledInTurn === MOST_PER_TURN) {
      this.waiting.push([req, res]);
      return;
    }
    if (this.handledInTurn++ === 0) setImmediate(() => this.nextTurn());
    // Meanwhile, the client may have left or the request may have been rejected.
    if (!res.destroyed && !res.writableEnded) this.callApp(req, res);
  }

  // Rethrow on the next tick, so that the parser or loop that called the app can continue.
  private callApp(req: IncomingMessage, res: ServerResponse) {
    try {
      this.app(req, res);
    } catch (error) {
      process.nextTick(() => {
        throw error;
      });
      this.rejectAndClose(res, new Problem(500, 'internal_error', { cause: error }));
    }
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

// Closes the connection after this response.
function closeAfter(res: ServerResponse) {
  res.shouldKeepAlive = false;
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
