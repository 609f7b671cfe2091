import type { IncomingHttpHeaders } from 'node:http';
import type { Logger } from './logger';
import type { Env } from './settings';

/** What the services need of tracing. Without a collector there is none, and nothing is loaded for it. */
export interface Tracing {
  /** Begins the server span of a request, as a child of a valid `traceparent`. */
  begin(method: string, path: string, headers: IncomingHttpHeaders): ServerSpan;
  /** Sends what is left, for a second at most. */
  close(): Promise<void>;
}

export interface ServerSpan {
  readonly traceId: string;
  /** Begins the client span of one request to the next hop `peer`; `resends` counts those before it in the exchange. */
  beginClient(peer: string, origin: URL, method: string, path: string, resends: number): ClientSpan;
  end(route: string, status: number, error: string | undefined): void;
}

export interface ClientSpan {
  /** `traceparent` and `tracestate`, names and values in turn. */
  readonly headers: readonly string[];
  end(status: number | undefined, error: string | undefined): void;
}

/**
 * Tracing by OpenTelemetry where the environment names a collector, else undefined.
 * @param service the service name, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` has one
 */
export function createTracing(service: string, env: Env, log: Logger): Tracing | undefined {
  const endpoint = env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT || env.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (!endpoint || env.OTEL_SDK_DISABLED === 'true' || env.OTEL_TRACES_EXPORTER === 'none') return undefined;
  const { OpenTelemetry }: typeof import('./open-telemetry') = require('./open-telemetry');
  return new OpenTelemetry(service, env, log);
}
