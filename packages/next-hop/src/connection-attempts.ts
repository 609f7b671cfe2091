import { Socket } from 'node:net';
import { type buildConnector, errors } from 'undici';

/** The errors of attempts to connect. A custom connector may report any error, such as one that invalid headers cause. */
export const connectionErrors = new WeakSet<Error>();

/** The attempts to connect that have not ended. Each has a timeout, and all can be stopped. */
export class ConnectionAttempts {
  private readonly stops = new Set<(error: Error) => void>();

  /** @param onConnectionError called when an established connection fails */
  constructor(private readonly onConnectionError: () => void) {}

  /** Like undici's connectors, which are only accurate to a second, but also for a custom one without a timeout. */
  start(
    connect: buildConnector.connector,
    target: buildConnector.Options,
    timeoutMs: number,
    callback: buildConnector.Callback,
  ) {
    let socket: unknown;
    let hasEnded = false;
    const end = (...result: Parameters<buildConnector.Callback>) => {
      hasEnded = true;
      clearTimeout(timer);
      this.stops.delete(stop);
      if (result[0] instanceof Object) connectionErrors.add(result[0]);
      callback(...result);
    };
    const stop = (error: Error) => {
      if (socket instanceof Socket) socket.destroy();
      end(error, null);
    };
    const expire = () => hasEnded || stop(new errors.ConnectTimeoutError());
    // If this process was busy, a TCP connection may have been established. Its event is handled before `expire` runs.
    const timer = setTimeout(() => setImmediate(expire), timeoutMs);
    this.stops.add(stop);
    try {
      // undici's connector returns the socket, although its type does not say so.
      socket = connect(target, (...result) => {
        const [, connected] = result;
        if (hasEnded) return void connected?.destroy();
        connected?.once('error', this.onConnectionError);
        end(...result);
      });
    } catch (error) {
      if (hasEnded) throw error;
      end(error as Error, null);
    }
  }

  /** Ends all attempts with a `ClientDestroyedError`. After a `SocketError`, for example, undici would connect again. */
  stop() {
    const error = new errors.ClientDestroyedError();
    for (const stop of [...this.stops]) stop(error);
  }
}
