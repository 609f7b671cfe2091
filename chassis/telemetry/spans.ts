import type { IncomingHttpHeaders } from 'node:http';

/** The interface to tracing. The SDK is loaded only if a collector is configured. */
export interface Tracing {
  /** Starts the server span of a request, as a child of `traceparent` if that is valid. */
  startServerSpan(method: string, path: string, headers: IncomingHttpHeaders): ServerSpan;
  /** Exports the remaining spans, for at most a second. */
  close(): Promise<void>;
}

export interface ServerSpan {
  readonly traceId: string;
  /** Starts the client span of one attempt to call `peer`; `resends` is the number of previous attempts. */
  startClientSpan(peer: string, origin: URL, method: string, path: string, resends: number): ClientSpan;
  end(route: string, status: number, error: string | undefined): void;
}

export interface ClientSpan {
  /** `traceparent` and `tracestate`; names and values alternate. */
  readonly headers: readonly string[];
  end(status: number | undefined, error: string | undefined): void;
}
