import type { Dispatcher } from 'undici';
import type { Endpoint } from './endpoint';
import { isGatewayError } from './errors';

/** A request that checks whether an ejected or suspect endpoint responds. Its response is discarded. */
export class Probe implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private readonly timer: NodeJS.Timeout;
  private hasEnded = false;

  constructor(
    private readonly endpoint: Endpoint,
    timeoutMs: number,
  ) {
    this.timer = setTimeout(() => this.fail(), timeoutMs);
  }

  send(request: Dispatcher.DispatchOptions) {
    this.endpoint.connections.dispatch(request, this);
  }

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.controller = controller;
    if (this.hasEnded) controller.abort(new Error('probe timed out'));
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number) {
    if (status < 200) return;
    if (isGatewayError(status)) return this.fail();
    this.end();
    this.endpoint.succeeded();
    controller.abort(new Error('probe succeeded'));
  }

  // undici requires both methods, although the probe has ended by then.
  onResponseData() {}

  onResponseEnd() {}

  onResponseError() {
    this.fail();
  }

  private fail() {
    if (this.hasEnded) return;
    this.end();
    this.endpoint.probeFailed(performance.now());
    this.controller?.abort(new Error('probe failed'));
  }

  private end() {
    this.hasEnded = true;
    clearTimeout(this.timer);
  }
}
