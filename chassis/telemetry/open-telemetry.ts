import type { IncomingHttpHeaders } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Attributes,
  createTraceState,
  DiagLogLevel,
  diag,
  isSpanContextValid,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from '@opentelemetry/resources';
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  type Sampler,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace';
import type { Env } from '../settings';
import type { Logger } from './logger';
import type { ClientSpan, ServerSpan, Tracing } from './spans';
import { parseTraceparent } from './trace-context';

const MAX_CLOSE_MS = 1000;

/** Exports traces to an OpenTelemetry collector over OTLP/HTTP, configured by the `OTEL_*` variables. */
export class OpenTelemetry implements Tracing {
  private readonly provider: TracerProvider;
  private readonly tracer: Tracer;

  constructor(
    service: string,
    env: Env,
    private readonly log: Logger,
  ) {
    const warn = (message: string) => log.warn({ detail: message }, 'tracing failed');
    diag.setLogger(
      { error: warn, warn, info() {}, debug() {}, verbose() {} },
      { logLevel: DiagLogLevel.WARN },
    );
    this.provider = new TracerProvider({
      resource: defaultResource()
        .merge(resourceFromAttributes({ 'service.name': service }))
        .merge(detectResources({ detectors: [envDetector] })),
      sampler: createSampler(env),
      spanProcessors: [new BatchSpanProcessor({ exporter: new OTLPTraceExporter(), ...batchOptions(env) })],
    });
    this.tracer = this.provider.getTracer('onehop');
  }

  startServerSpan(method: string, path: string, headers: IncomingHttpHeaders): ServerSpan {
    const attributes = { 'http.request.method': method, 'url.path': path, 'url.scheme': 'http' };
    const options = { kind: SpanKind.SERVER, attributes };
    return new OtelServerSpan(this.tracer, this.tracer.startSpan(method, options, parentOf(headers)), method);
  }

  async close() {
    const timeout = sleep(MAX_CLOSE_MS, undefined, { ref: false }).then(() => {
      throw new Error(`the collector did not accept the spans within ${MAX_CLOSE_MS} ms`);
    });
    await Promise.race([this.provider.shutdown(), timeout]).catch((err) =>
      this.log.warn({ err }, 'tracing failed'),
    );
  }
}

class OtelServerSpan implements ServerSpan {
  readonly traceId: string;

  constructor(
    private readonly tracer: Tracer,
    private readonly span: Span,
    private readonly method: string,
  ) {
    this.traceId = span.spanContext().traceId;
  }

  startClientSpan(peer: string, origin: URL, method: string, path: string, resends: number): ClientSpan {
    const attributes: Attributes = {
      'http.request.method': method,
      'peer.service': peer,
      'server.address': origin.hostname,
      'server.port': Number(origin.port) || (origin.protocol === 'https:' ? 443 : 80),
      'url.full': origin.origin + path,
    };
    if (resends > 0) attributes['http.request.resend_count'] = resends;
    const options = { kind: SpanKind.CLIENT, attributes };
    return new OtelClientSpan(this.tracer.startSpan(method, options, trace.setSpan(ROOT_CONTEXT, this.span)));
  }

  end(route: string, status: number, error: string | undefined) {
    if (route !== 'unmatched') {
      this.span.updateName(`${this.method} ${route}`);
      this.span.setAttribute('http.route', route);
    }
    // A 4xx is not an error of a server span.
    endSpan(this.span, status, error ?? (status >= 500 ? String(status) : undefined));
  }
}

class OtelClientSpan implements ClientSpan {
  readonly headers: readonly string[];

  constructor(private readonly span: Span) {
    const { traceId, spanId, traceFlags, traceState } = span.spanContext();
    const state = traceState?.serialize();
    const parent = ['traceparent', `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, '0')}`];
    this.headers = state ? [...parent, 'tracestate', state] : parent;
  }

  end(status: number | undefined, error: string | undefined) {
    endSpan(this.span, status, error ?? (status !== undefined && status >= 400 ? String(status) : undefined));
  }
}

function endSpan(span: Span, status: number | undefined, error: string | undefined) {
  if (status !== undefined) span.setAttribute('http.response.status_code', status);
  if (error !== undefined) {
    span.setAttribute('error.type', error);
    span.setStatus({ code: SpanStatusCode.ERROR });
  }
  span.end();
}

function parentOf(headers: IncomingHttpHeaders) {
  const parsed = parseTraceparent(headers.traceparent);
  if (parsed === undefined) return ROOT_CONTEXT;
  const state = headers.tracestate;
  const context = {
    ...parsed,
    isRemote: true,
    ...(state === undefined ? {} : { traceState: createTraceState(String(state)) }),
  };
  return isSpanContextValid(context) ? trace.setSpanContext(ROOT_CONTEXT, context) : ROOT_CONTEXT;
}

// The SDK does not read these variables itself.
function createSampler({ OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: ratio }: Env): Sampler {
  const rootName = name?.replace(/^parentbased_/, '');
  const root =
    rootName === 'always_off'
      ? new AlwaysOffSampler()
      : rootName === 'traceidratio'
        ? new TraceIdRatioBasedSampler(Number(ratio ?? 1))
        : new AlwaysOnSampler();
  return name === rootName && name !== undefined ? root : new ParentBasedSampler({ root });
}

function batchOptions(env: Env) {
  const option = (name: string, key: string) => (env[name] ? { [key]: Number(env[name]) } : {});
  return {
    ...option('OTEL_BSP_SCHEDULE_DELAY', 'scheduledDelayMillis'),
    ...option('OTEL_BSP_EXPORT_TIMEOUT', 'exportTimeoutMillis'),
    ...option('OTEL_BSP_MAX_QUEUE_SIZE', 'maxQueueSize'),
    ...option('OTEL_BSP_MAX_EXPORT_BATCH_SIZE', 'maxExportBatchSize'),
  };
}
