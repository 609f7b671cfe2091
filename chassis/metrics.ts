import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
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
  private readonly served = new Histogram({
    name: 'http_server_request_duration_seconds',
    help: 'How long requests took to answer.',
    labelNames: ['method', 'route', 'status'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  private readonly asked = new Histogram({
    name: 'http_client_request_duration_seconds',
    help: 'How long exchanges with a next hop took, retries included; error is a type of RFC 9209, or empty.',
    labelNames: ['next_hop', 'status', 'error'],
    buckets: SECONDS,
    registers: [this.registry],
  });
  private readonly repeats = new Counter({
    name: 'http_client_retries_total',
    help: 'Requests to a next hop beyond the first of an exchange; trials of addresses count as hedges.',
    labelNames: ['next_hop', 'kind'],
    registers: [this.registry],
  });
  // Finding the series of a set of labels costs more than counting in it.
  private readonly servedSeries = new Map<string, Histogram.Internal<string>>();
  private readonly askedSeries = new Map<string, Histogram.Internal<string>>();

  /** @param inFlight how many requests are being answered */
  constructor(inFlight: () => number) {
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
    const key = `${method} ${route} ${status}`;
    let series = this.servedSeries.get(key);
    if (series === undefined) {
      series = this.served.labels(METHODS.has(method) ? method : '_OTHER', route, String(status));
      this.servedSeries.set(key, series);
    }
    series.observe(durationMs / 1000);
  }

  /** @param status undefined where there was none; `error` empty on success */
  exchangeEnded(nextHop: string, status: number | undefined, error: string, durationMs: number) {
    const key = `${nextHop} ${status} ${error}`;
    let series = this.askedSeries.get(key);
    if (series === undefined) {
      series = this.asked.labels(nextHop, status === undefined ? '' : String(status), error);
      this.askedSeries.set(key, series);
    }
    series.observe(durationMs / 1000);
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
