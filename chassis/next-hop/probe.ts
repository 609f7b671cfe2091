import type { Dispatcher } from 'undici';
import type { Address } from './address';
import { isGatewayError } from './failure';

/** A request that finds out whether an ejected address responds again. Its response is discarded. */
export class Probe implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private readonly timer: NodeJS.Timeout;
  private hasEnded = false;

  constructor(
    private readonly address: Address,
    timeoutMs: number,
  ) {
    this.timer = setTimeout(() => this.fail(), timeoutMs);
  }

  send(request: Dispatcher.DispatchOptions) {
    this.address.connections.dispatch(request, this);
  }

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.controller = controller;
    if (this.hasEnded) controller.abort(new Error('probe timed out'));
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number) {
    if (status < 200) return;
    if (isGatewayError(status)) return this.fail();
    this.end();
    this.address.succeeded();
    controller.abort(new Error('probe succeeded'));
  }

  // undici requires a handler for both; the probe has ended by then.
  onResponseData() {}

  onResponseEnd() {}

  onResponseError() {
    this.fail();
  }

  private fail() {
    if (this.hasEnded) return;
    this.end();
    this.address.eject(performance.now());
    this.controller?.abort(new Error('probe failed'));
  }

  private end() {
    this.hasEnded = true;
    clearTimeout(this.timer);
  }
}
