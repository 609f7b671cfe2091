import type { Dispatcher } from 'undici';
import type { Address } from './address';

/** A request that finds out whether an address that was set aside answers again. Its answer is thrown away. */
export class Trial implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private readonly timer: NodeJS.Timeout;
  private over = false;

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
    if (this.over) controller.abort(new Error('too late'));
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number) {
    if (status < 200) return;
    this.end();
    this.address.answered();
    controller.abort(new Error('answered'));
  }

  // undici wants a handler for each; nothing is left to do by then.
  onResponseData() {}

  onResponseEnd() {}

  onResponseError() {
    this.fail();
  }

  private fail() {
    if (this.over) return;
    this.end();
    this.address.setAside(performance.now());
    this.controller?.abort(new Error('too late'));
  }

  private end() {
    this.over = true;
    clearTimeout(this.timer);
  }
}
