import type { Env } from '../settings';
import type { Logger } from './logger';
import type { Tracing } from './spans';

/**
 * Creates OpenTelemetry tracing if the environment names a collector.
 * @param service the service name, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` sets one
 */
export function createTracing(service: string, env: Env, log: Logger): Tracing | undefined {
  const endpoint = env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT || env.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (!endpoint || env.OTEL_SDK_DISABLED === 'true' || env.OTEL_TRACES_EXPORTER === 'none') return undefined;
  const { OpenTelemetry }: typeof import('./open-telemetry') = require('./open-telemetry');
  return new OpenTelemetry(service, env, log);
}
