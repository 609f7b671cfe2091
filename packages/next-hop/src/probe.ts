import type { Dispatcher } from 'undici';

const ENDED = new Error('probe ended');

/** A request that checks whether an endpoint responds. Its response is discarded. */
export class Probe implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private readonly timer: NodeJS.Timeout;
  private hasEnded = false;

  constructor(
    timeoutMs: number,
    private readonly hasFactory: boolean,
    /** Called with the status of the response, or undefined if there was none. */
    private readonly onEnd: (status: number | undefined) => void,
  ) {
    // If this process was busy, the response may have arrived already. It is read before the probe ends.
    this.timer = setTimeout(() => setImmediate(() => this.end()), timeoutMs);
  }

  send(request: Dispatcher.DispatchOptions, connections: Dispatcher) {
    try {
      connections.dispatch(request, this);
    } catch {
      // A dispatcher of `factory` may throw. The probe has then failed.
      this.end();
    }
  }

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.controller = controller;
    if (!this.hasEnded) return;
    // As in `Attempt`, an exception keeps the connection open.
    if (!this.hasFactory) throw ENDED;
    controller.abort(ENDED);
  }

  onResponseStart(_controller: Dispatcher.DispatchController, status: number) {
    if (status >= 200) this.end(status);
  }

  // undici requires both methods, although the probe has ended by then.
  onResponseData() {}

  onResponseEnd() {}

  onResponseError() {
    this.end();
  }

  private end(status?: number) {
    if (this.hasEnded) return;
    this.hasEnded = true;
    clearTimeout(this.timer);
    this.onEnd(status);
    this.controller?.abort(ENDED);
  }
}
