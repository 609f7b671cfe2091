import type { IncomingHttpHeaders } from 'node:http';
import type { Dispatcher } from 'undici';
import { NextHopError } from './errors';
import { WholeResponse } from './response';

/** The part of `AbortSignal` that `get` uses, so that a caller may pass a cheaper object. */
export interface AbortSignalLike {
  readonly aborted: boolean;
  readonly reason?: unknown;
  addEventListener(type: 'abort', listener: () => void, options?: { once?: boolean }): void;
  removeEventListener(type: 'abort', listener: () => void): void;
}

const MAX_CHUNKS = 1000;

/**
 * Resolves the responses that arrive in one turn of the event loop together at its end. A server then writes its own
 * responses in a row, which wakes fewer processes (docs/decisions/0008-hot-path.md).
 */
export class CompletedResponses {
  private readonly handlers: GetHandler[] = [];

  add(handler: GetHandler) {
    if (this.handlers.push(handler) === 1) setImmediate(() => this.resolveAll());
  }

  private resolveAll() {
    for (const handler of this.handlers.splice(0)) handler.resolveResponse();
  }
}

/** Collects a complete response up to a size limit. */
export class GetHandler implements Dispatcher.DispatchHandler {
  private controller: Dispatcher.DispatchController | undefined;
  private statusCode = 0;
  private headers: IncomingHttpHeaders = {};
  private readonly chunks: Buffer[] = [];
  /** The number of leading chunks that are concatenations of smaller ones. */
  private concatenatedChunks = 0;
  private bytes = 0;

  constructor(
    private readonly nextHop: string,
    private readonly maxBodyBytes: number,
    private readonly signal: AbortSignalLike | undefined,
    private readonly completed: CompletedResponses,
    private readonly resolve: (response: WholeResponse) => void,
    private readonly reject: (error: Error) => void,
  ) {}

  onRequestStart(controller: Dispatcher.DispatchController) {
    this.controller = controller;
    const { signal } = this;
    if (signal == null) return;
    if (signal.aborted) this.abort();
    else signal.addEventListener('abort', this.abort, { once: true });
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: IncomingHttpHeaders,
  ) {
    if (statusCode < 200) return;
    this.statusCode = statusCode;
    this.headers = headers;
    const coding = headers['content-encoding'];
    // `get` requests no content coding.
    if (coding !== undefined && coding.toLowerCase() !== 'identity')
      this.fail('http_response_content_coding');
    else if (Number(headers['content-length']) > this.maxBodyBytes) this.fail('http_response_body_size');
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer) {
    this.bytes += chunk.length;
    if (this.bytes > this.maxBodyBytes) return this.fail('http_response_body_size');
    this.chunks.push(chunk);
    // Many tiny chunks would use hundreds of times the memory of the body.
    if (this.chunks.length - this.concatenatedChunks > MAX_CHUNKS)
      this.chunks.push(Buffer.concat(this.chunks.splice(this.concatenatedChunks++)));
  }

  onResponseEnd() {
    this.signal?.removeEventListener('abort', this.abort);
    this.completed.add(this);
  }

  resolveResponse() {
    this.resolve(new WholeResponse(this.statusCode, this.headers, this.chunks, this.bytes));
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error) {
    this.signal?.removeEventListener('abort', this.abort);
    this.reject(error);
  }

  // A closure created in onRequestStart would keep ended exchanges alive through minor garbage collections, which
  // would then pause the process for 20 ms.
  private readonly abort = () => {
    this.controller?.abort(reasonOf(this.signal as AbortSignalLike));
  };

  private fail(code: 'http_response_content_coding' | 'http_response_body_size') {
    this.controller?.abort(new NextHopError(code, this.nextHop, { statusCode: this.statusCode }));
  }
}

function reasonOf({ reason }: AbortSignalLike) {
  return (reason ?? new DOMException('This operation was aborted', 'AbortError')) as Error;
}
