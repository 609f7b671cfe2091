import { type Dispatcher, errors } from 'undici';

/** The handler interface of undici 7 and older, which the `fetch` of Node 22 and 24 uses. */
export interface LegacyHandler {
  onConnect?(abort: (reason?: Error) => void, context: unknown): void;
  onHeaders?(
    statusCode: number,
    headers: Buffer[],
    resume: () => void,
    statusMessage: string,
  ): boolean | undefined;
  onResponseStarted?(): void;
  onData?(chunk: Buffer): boolean | undefined;
  onComplete?(trailers: Buffer[]): void;
  onError?(error: Error): void;
}

/** Returns the handler itself if it implements undici 8's interface, otherwise an adapter for the older interface. */
export function adaptHandler(
  handler: Dispatcher.DispatchHandler | LegacyHandler,
): Dispatcher.DispatchHandler {
  if (handler === null || typeof handler !== 'object')
    throw new errors.InvalidArgumentError('handler must be an object');
  return isLegacy(handler) ? new LegacyHandlerAdapter(handler) : handler;
}

function isLegacy(handler: Dispatcher.DispatchHandler | LegacyHandler): handler is LegacyHandler {
  return 'onConnect' in handler && !('onRequestStart' in handler);
}

class LegacyHandlerAdapter implements Dispatcher.DispatchHandler {
  constructor(private readonly handler: LegacyHandler) {}

  onRequestStart(controller: Dispatcher.DispatchController, context: unknown) {
    this.handler.onConnect?.((reason) => controller.abort(reason as Error), context);
  }

  onResponseStarted() {
    this.handler.onResponseStarted?.();
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: object,
    message?: string,
  ) {
    const raw = rawHeaders(controller.rawHeaders, headers);
    const resume = () => controller.resume();
    if (this.handler.onHeaders?.(statusCode, raw, resume, message ?? '') === false) controller.pause();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer) {
    if (this.handler.onData?.(chunk) === false) controller.pause();
  }

  onResponseEnd(controller: Dispatcher.DispatchController, trailers: object) {
    this.handler.onComplete?.(rawHeaders(controller.rawTrailers, trailers));
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error) {
    this.handler.onError?.(error);
  }
}

// Returns alternating names and values.
function rawHeaders(raw: unknown, parsed: object): Buffer[] {
  if (Array.isArray(raw))
    return raw.map((item) => (typeof item === 'string' ? Buffer.from(item, 'latin1') : item));
  return Object.entries(parsed).flatMap(([name, value]) =>
    [value].flat().flatMap((item) => [Buffer.from(name, 'latin1'), Buffer.from(String(item), 'latin1')]),
  );
}
