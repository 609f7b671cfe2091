import { AsyncResource } from 'node:async_hooks';
import { once } from 'node:events';
import { createServer, IncomingMessage, type RequestListener, type Server, ServerResponse } from 'node:http';
import { Server as NetServer, type Socket } from 'node:net';
import { setImmediate as immediate } from 'node:timers/promises';
import { expressClassesFor } from './express-classes';
import { Problem } from './problem';
import {
  clientErrorToProblem,
  connectNotAllowedProblem,
  isHostMissing,
  missingHostProblem,
  type SendRejection,
  unknownExpectationProblem,
} from './rejection';

/**
 * Timeouts for slow and silent clients, in milliseconds. Node checks the first two only every
 * `connectionsCheckingInterval` (by default 30 s).
 */
export const TIMEOUTS = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 1000,
  /**
   * For idle connections. Longer than the 30 s of `next-hop` and the 60 s of common load balancers, so that the
   * client closes a connection, not the server.
   */
  idleTimeout: 65_000,
  /** For a client that reads nothing of its response. */
  sendTimeout: 30_000,
};

// Maximum number of connections waiting to be accepted; Linux's default limit. With Node's default of 511, a larger
// burst delays some clients by a second.
const BACKLOG = 4096;

// libuv reads up to 49,152 sockets in one turn of the event loop, before timers, new connections and the log. Under
// load such a turn takes seconds, and pending requests to a next hop miss their deadline. Requests beyond this number
// wait for the next turn.
const MAX_REQUESTS_PER_TURN = 64;
// libuv also accepts only one connection per turn. Shorter turns accept a burst of connections sooner.
const MAX_REQUESTS_WHILE_ACCEPTING = 1;

// Maximum number of pending requests on one connection. Clients don't pipeline that many, and Node has no limit.
const MAX_PIPELINED = 128;

// Metrics label for unknown methods.
const UNKNOWN_METHOD = '_OTHER';

const MAX_DISCARDED_BYTES = 1024 * 1024;

// Number of checks of each connection within `sendTimeout`.
const CHECKS_PER_SEND_TIMEOUT = 5;

// How long to keep reading after closing the write side, unless the client closes first. nginx's lingering_close
// does this for 5 s; one round trip is enough.
const LINGER_MS = 500;

// How long a connection accepted at the end of the drain may take to send its first request.
const FIRST_REQUEST_MS = 100;

// Maximum time to accept the remaining backlog before closing the port.
const MAX_ACCEPT_MS = 1000;

/** The state of one connection. */
interface Connection {
  /** Deadline for the first request; 0 after it has arrived. */
  firstRequestDeadlineMs: number;
  /** The response to the latest request; undefined once request and response are complete. */
  latest: ServerResponse | undefined;
  /** The write side is closed or the parser failed; further input is discarded. */
  isClosing: boolean;
  /** Number of requests without a complete response. */
  pendingRequests: number;
  /** Bytes that were waiting to be sent at the last check, and the number of checks in a row without a change. */
  unsentBytes: number;
  stalledChecks: number;
  /** Bytes received until the last check, and the number of checks in a row without new bytes or a pending request. */
  receivedBytes: number;
  idleChecks: number;
}

/** A request that waits, with its async context, which tracing tools set. */
class QueuedRequest extends AsyncResource {
  constructor(
    readonly req: IncomingMessage,
    readonly res: ServerResponse,
  ) {
    super('QueuedRequest');
  }
}

/** Listening failed; the message gives port, host and reason. */
export class ListenError extends Error {}

/** An HTTP server that disconnects slow and silent clients, and completes pending responses when it stops. */
export class HttpServer {
  private readonly server: Server;
  private readonly connections = new Map<Socket, Connection>();
  private readonly maxIdleChecks: number;
  private maxRequestsInTurn = MAX_REQUESTS_PER_TURN;
  private readonly queue: QueuedRequest[] = [];
  private readonly classes;
  private isDraining = false;
  private isClosing = false;
  private acceptedConnections = 0;

  constructor(
    private readonly app: RequestListener,
    { sendTimeout, idleTimeout, ...timeouts }: typeof TIMEOUTS,
    private readonly sendRejection: SendRejection,
  ) {
    this.classes = { IncomingMessage, ServerResponse, ...expressClassesFor(app) };
    const checkIntervalMs = sendTimeout / CHECKS_PER_SEND_TIMEOUT;
    // Node's socket timeouts are reset on each request, which costs a tenth of the throughput.
    const options = { keepAliveTimeout: 0, optimizeEmptyRequests: true, requireHostHeader: false };
    this.server = createServer({ ...timeouts, ...options, ...this.classes }, (req, res) => {
      if (!this.requestStarted(req.socket, res)) return;
      if (isHostMissing(req)) return this.rejectAndClose(res, missingHostProblem());
      if (!req.url?.startsWith('/')) req.url = originForm(req);
      this.enqueue(req, res);
    });
    this.server.on('checkContinue', (req, res) => this.server.emit('request', req, res));
    this.server.on('connect', (req, socket) =>
      this.rejectUnparsed(socket as Socket, connectNotAllowedProblem(), req),
    );
    this.server.on('checkExpectation', (req, res) => {
      if (this.requestStarted(req.socket, res)) this.rejectAndClose(res, unknownExpectationProblem());
    });
    this.server.on('clientError', (error, socket) => {
      const problem = clientErrorToProblem(error, socket as Socket);
      const reject = () => this.parserFailed(error, socket as Socket, problem);
      // A request that is still queued starts before an error in its body is reported.
      if (this.queue.length > 0) setImmediate(reject);
      else reject();
    });
    this.server.on('connection', (socket: Socket) => this.connectionOpened(socket));
    // One more, because the first check may follow immediately.
    this.maxIdleChecks = Math.ceil(idleTimeout / checkIntervalMs) + 1;
    const check = setInterval(() => this.checkConnections(), checkIntervalMs).unref();
    this.server.once('close', () => clearInterval(check));
  }

  /**
   * Starts to listen, and resolves to the port.
   * @throws {ListenError}
   */
  async listen(host: string, port: number): Promise<number> {
    this.server.listen({ port, host, backlog: BACKLOG });
    try {
      await once(this.server, 'listening');
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const reason = code === 'EADDRINUSE' ? 'the port is already in use (EADDRINUSE)' : message;
      throw new ListenError(`Cannot listen on port ${port} of ${host}: ${reason}`);
    }
    const address = this.server.address();
    return typeof address === 'object' && address !== null ? address.port : port;
  }

  /** From now on, the last response on each connection carries `Connection: close`. */
  drain() {
    this.isDraining = true;
    for (const { latest } of this.connections.values())
      if (latest?.headersSent === false) disableKeepAlive(latest);
  }

  /** Stops listening, closes idle connections, and resolves when all pending responses are sent. */
  async close() {
    if (!this.server.listening) return;
    await this.acceptPending();
    this.isClosing = true;
    this.drain();
    const closed = once(this.server, 'close');
    // `close` of the HTTP server would also stop the timeouts, and close connections with unsent data.
    NetServer.prototype.close.call(this.server);
    for (const [socket, connection] of this.connections) this.closeIfIdle(socket, connection);
    await closed;
    this.server.close();
  }

  // Closing the port resets connections in the backlog, and libuv accepts only one per turn of the event loop.
  // Each turn also reads the data that has arrived on the others.
  private async acceptPending() {
    const startedMs = performance.now();
    let previous: number;
    do {
      previous = this.acceptedConnections;
      await immediate();
    } while (this.acceptedConnections > previous && performance.now() - startedMs < MAX_ACCEPT_MS);
  }

  private connectionOpened(socket: Socket) {
    this.acceptedConnections++;
    this.maxRequestsInTurn = MAX_REQUESTS_WHILE_ACCEPTING;
    this.connections.set(socket, {
      firstRequestDeadlineMs: performance.now() + FIRST_REQUEST_MS,
      latest: undefined,
      isClosing: false,
      pendingRequests: 0,
      unsentBytes: 0,
      stalledChecks: 0,
      receivedBytes: 0,
      idleChecks: 0,
    });
    socket.once('close', () => this.connections.delete(socket));
    // Node calls destroySoon after a response with `Connection: close`.
    socket.destroySoon = () => this.closeConnection(socket);
  }

  private requestStarted(socket: Socket, res: ServerResponse) {
    const connection = this.connections.get(socket);
    if (connection === undefined || connection.isClosing) return false;
    if (++connection.pendingRequests > MAX_PIPELINED) {
      socket.destroy();
      return false;
    }
    connection.idleChecks = 0;
    connection.firstRequestDeadlineMs = 0;
    if (this.isDraining) {
      // Otherwise the pipelined request after it would get no response.
      if (connection.latest?.headersSent === false) connection.latest.shouldKeepAlive = true;
      disableKeepAlive(res);
    }
    connection.latest = res;
    res.on('close', () => {
      connection.pendingRequests--;
      if (connection.latest === res && res.req.complete) connection.latest = undefined;
      if (connection.pendingRequests === 0 && (this.isClosing || isLargeBodyPending(res.req)))
        this.closeConnection(socket);
    });
    return true;
  }

  private closeIfIdle(socket: Socket, connection: Connection) {
    if (connection.pendingRequests > 0) return;
    const remainingMs = connection.firstRequestDeadlineMs - performance.now();
    if (remainingMs <= 0) return this.closeConnection(socket);
    const close = () => connection.pendingRequests === 0 && this.closeConnection(socket);
    // Process data that has already arrived before closing.
    setTimeout(() => setImmediate(close), remainingMs);
  }

  /**
   * Closes a connection in two steps (RFC 9112, section 9.6): the write side first. If the read side closed at the
   * same time, arriving bytes would reset the connection, and the client would lose the unread part of the response.
   */
  private closeConnection(socket: Socket) {
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
    disableKeepAlive(res);
    this.sendRejection(res, problem);
  }

  // When Node's parser fails, there is no request or response object, unless the bytes belong to the body of the
  // latest request.
  private parserFailed(error: NodeJS.ErrnoException, socket: Socket, problem: Problem | undefined) {
    const connection = this.connections.get(socket);
    if (connection === undefined || connection.isClosing) return;
    const { latest, pendingRequests } = connection;
    if (problem === undefined) return void socket.destroy();
    connection.isClosing = true;
    if (latest === undefined || (pendingRequests === 0 && latest.req.complete))
      this.rejectUnparsed(socket, problem);
    else if (pendingRequests === 0) this.closeConnection(socket);
    else if (latest.req.complete) latest.once('close', () => this.rejectUnparsed(socket, problem));
    else if (latest.writableEnded) latest.once('close', () => this.closeConnection(socket));
    else if (error.code === 'HPE_INVALID_EOF_STATE') socket.destroy();
    else this.rejectAndClose(latest, problem);
  }

  private rejectUnparsed(socket: Socket, problem: Problem, req = this.unparsedRequest(socket)) {
    if (!socket.writable) return;
    const res = new this.classes.ServerResponse(req);
    res.assignSocket(socket);
    res.once('finish', () => {
      res.detachSocket(socket);
      res.emit('close');
      this.closeConnection(socket);
    });
    this.rejectAndClose(res, problem);
  }

  private unparsedRequest(socket: Socket) {
    const req = new this.classes.IncomingMessage(socket);
    req.method = UNKNOWN_METHOD;
    req.url = '/';
    return req;
  }

  // Requests that arrive in one turn of the event loop are handled together at its end. Their writes to the next hop
  // then wake its process once, and waking a process is a large part of the cost of a request
  // (docs/decisions/0008-hot-path.md).
  private enqueue(req: IncomingMessage, res: ServerResponse) {
    if (this.queue.push(new QueuedRequest(req, res)) === 1) this.scheduleQueued();
  }

  private scheduleQueued() {
    setImmediate(() => this.handleQueued());
  }

  private handleQueued() {
    const batch = this.queue.splice(0, this.maxRequestsInTurn);
    this.maxRequestsInTurn = MAX_REQUESTS_PER_TURN;
    if (this.queue.length > 0) this.scheduleQueued();
    for (const request of batch) request.runInAsyncScope(this.callApp, this, request.req, request.res);
  }

  // Rethrow on the next tick, so that the remaining requests are still handled.
  private callApp(req: IncomingMessage, res: ServerResponse) {
    // While the request was queued, the client may have disconnected or the request may have been rejected.
    if (res.destroyed || res.writableEnded) return;
    try {
      this.app(req, res);
    } catch (error) {
      process.nextTick(() => {
        throw error;
      });
      this.rejectAndClose(res, new Problem(500, 'internal_error', { cause: error }));
    }
  }

  private checkConnections() {
    for (const [socket, connection] of this.connections) {
      updateChecks(socket, connection);
      const { stalledChecks, idleChecks } = connection;
      if (stalledChecks === CHECKS_PER_SEND_TIMEOUT || idleChecks === this.maxIdleChecks) socket.destroy();
    }
  }
}

// Node discards an unread body so that the connection can be reused. For a large body, closing is cheaper.
function isLargeBodyPending({ complete, headers }: IncomingMessage) {
  const length = Number(
    headers['content-length'] ?? (headers['transfer-encoding'] ? Number.POSITIVE_INFINITY : 0),
  );
  return !complete && length > MAX_DISCARDED_BYTES;
}

// Closes the connection after this response.
function disableKeepAlive(res: ServerResponse) {
  res.shouldKeepAlive = false;
}

function updateChecks({ writableLength, bytesRead }: Socket, connection: Connection) {
  const isStalled = writableLength > 0 && writableLength === connection.unsentBytes;
  connection.unsentBytes = writableLength;
  connection.stalledChecks = isStalled ? connection.stalledChecks + 1 : 0;
  const isIdle = connection.pendingRequests === 0 && bytesRead === connection.receivedBytes;
  connection.receivedBytes = bytesRead;
  connection.idleChecks = isIdle ? connection.idleChecks + 1 : 0;
}

// Servers must accept absolute-form targets (RFC 9112, section 3.2.2); Express fails on one with a malformed host.
function originForm({ url = '' }: IncomingMessage) {
  const path = /^[a-z][a-z\d+.-]*:\/\/[^/?#]*(.*)$/i.exec(url)?.[1] ?? '/*';
  return path.startsWith('/') ? path : `/${path}`;
}
