import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { DurationHistogram } from './histogram';
import type { CircuitState } from './next-hop/circuit-breaker';

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const CIRCUIT: Readonly<Record<CircuitState, number>> = { closed: 0, 'half-open': 1, open: 2 };
// A client may send any method that Node's parser knows; the rest share a label, named as OpenTelemetry does.
const METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']);

// Gauges that are named like counters, which `promtool check metrics` refuses.
const MISNAMED = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
];

/** The client of a next hop, as its metrics see it. */
export interface MeasuredHop {
  readonly name: string;
  readonly circuit: CircuitState;
  /** Open connections. */
  readonly connections: number;
}

/** The Prometheus metrics of one service, and those of its process. */
export class Metrics {
  readonly registry = new Registry();
  private readonly hops: MeasuredHop[] = [];
  private readonly served = new DurationHistogram(
    'http_server_request_duration_seconds',
    'How long requests took to answer.',
    ['method', 'route', 'status'],
    SECONDS,
  );
  private readonly asked = new DurationHistogram(
    'http_client_request_duration_seconds',
    'How long exchanges with a next hop took, retries included; error is a type of RFC 9209, or empty.',
    ['next_hop', 'status', 'error'],
    SECONDS,
  );
  private readonly repeats = new Counter({
    name: 'http_client_retries_total',
    help: 'Requests to a next hop beyond the first of an exchange; trials of addresses count as hedges.',
    labelNames: ['next_hop', 'kind'],
    registers: [this.registry],
  });
  /** @param inFlight how many requests are being answered */
  constructor(inFlight: () => number) {
    for (const histogram of [this.served, this.asked]) this.registry.registerMetric(histogram.asMetric());
    collectDefaultMetrics({ register: this.registry });
    for (const name of MISNAMED) this.registry.removeSingleMetric(name);
    this.gauge('http_server_requests_in_flight', 'Requests being answered.', [], (gauge) =>
      gauge.set(inFlight()),
    );
    this.gauge('http_client_circuit_state', '0 closed, 1 half open, 2 open.', ['next_hop'], (gauge) => {
      for (const hop of this.hops) gauge.set({ next_hop: hop.name }, CIRCUIT[hop.circuit]);
    });
    this.gauge('http_client_connections', 'Open connections to a next hop.', ['next_hop'], (gauge) => {
      for (const hop of this.hops) gauge.set({ next_hop: hop.name }, hop.connections);
    });
  }

  /** Shows the state of a next hop's client from now on. */
  watch(hop: MeasuredHop) {
    this.hops.push(hop);
    for (const kind of ['retry', 'hedge']) this.repeats.inc({ next_hop: hop.name, kind }, 0);
  }

  requestEnded(method: string, route: string, status: number, durationMs: number) {
    this.served.observe(METHODS.has(method) ? method : '_OTHER', route, status, durationMs);
  }

  /** @param status undefined where there was none; `error` empty on success */
  exchangeEnded(nextHop: string, status: number | undefined, error: string, durationMs: number) {
    this.asked.observe(nextHop, status ?? '', error, durationMs);
  }

  requestRepeated(nextHop: string, kind: 'retry' | 'hedge') {
    this.repeats.inc({ next_hop: nextHop, kind });
  }

  private gauge(name: string, help: string, labelNames: string[], read: (gauge: Gauge) => void) {
    new Gauge({
      name,
      help,
      labelNames,
      registers: [this.registry],
      collect() {
        read(this);
      },
    });
  }
}
