import { once } from 'node:events';
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import { Server as NetServer, type Socket } from 'node:net';

/**
 * Time-outs against slow and silent clients, in milliseconds. Node checks the first two only every
 * `connectionsCheckingInterval`, which is 30 s unless told.
 */
export const TIMEOUTS = {
  headersTimeout: 10_000,
  requestTimeout: 30_000,
  connectionsCheckingInterval: 1000,
  // Longer than the 30 s of our own client and the 60 s of the usual load balancers: whoever asks also closes.
  keepAliveTimeout: 65_000,
  /** For a client that takes nothing of its answer. */
  unreadTimeout: 30_000,
};

/** A port that can't be had, in one plain sentence. */
export class ListenError extends Error {}

/** An HTTP server that cuts off slow and silent clients, and ends without cutting an answer. */
export class HttpServer {
  private readonly server: Server;
  /** How many requests of each connection have no whole answer yet. */
  private readonly unanswered = new Map<Socket, number>();
  private isFinishing = false;

  constructor(app: RequestListener, { unreadTimeout, ...timeouts } = TIMEOUTS) {
    this.server = createServer(timeouts, (req, res) => {
      this.began(req.socket, res);
      if (!req.url?.startsWith('/')) req.url = originForm(req);
      app(req, res);
    });
    this.server.on('connection', (socket: Socket) => {
      this.unanswered.set(socket, 0);
      socket.once('close', () => this.unanswered.delete(socket));
    });
    this.server.setTimeout(unreadTimeout, (socket) => this.wasSilent(socket));
  }

  /**
   * Listens, and resolves to the port.
   * @throws {ListenError}
   */
  async listen(host: string, port: number): Promise<number> {
    this.server.listen(port, host);
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
    for (const [socket, requests] of this.unanswered) if (requests === 0) socket.destroySoon();
    await closed;
    this.server.close();
  }

  private began(socket: Socket, res: ServerResponse) {
    this.unanswered.set(socket, (this.unanswered.get(socket) ?? 0) + 1);
    res.once('close', () => {
      const left = (this.unanswered.get(socket) ?? 1) - 1;
      if (!socket.destroyed) this.unanswered.set(socket, left);
      if (left === 0 && this.isFinishing) socket.destroySoon();
    });
  }

  // While its answer is being made, a connection may well be silent.
  private wasSilent(socket: Socket) {
    const waitsForUs = (this.unanswered.get(socket) ?? 0) > 0 && socket.writableLength === 0;
    if (!waitsForUs) socket.destroy();
  }
}

// A server takes a target with scheme and host too (RFC 9112, section 3.2.2), and Express does not take
// one whose host is malformed.
function originForm({ url = '' }: IncomingMessage) {
  const path = /^[a-z][a-z\d+.-]*:\/\/[^/?#]*(.*)$/i.exec(url)?.[1] ?? '/*';
  return path.startsWith('/') ? path : `/${path}`;
}
