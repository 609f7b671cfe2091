import type { CircuitState } from 'next-hop';
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { DurationHistogram } from './histogram';

const BUCKETS_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const CIRCUIT_VALUES: Readonly<Record<CircuitState, number>> = { closed: 0, 'half-open': 1, open: 2 };
// The errors that operators look for. Their series exist from the start.
const COMMON_ERRORS = [
  'dns_error',
  'connection_refused',
  'connection_timeout',
  'connection_terminated',
  'http_response_timeout',
  'http_response_incomplete',
  'connection_limit_reached',
  'destination_unavailable',
];
// Other methods share a label, as in OpenTelemetry, so that clients can't create many series.
const KNOWN_METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']);

// Gauges with names of counters, which `promtool check metrics` rejects.
const MISNAMED_GAUGES = [
  'nodejs_active_handles_total',
  'nodejs_active_requests_total',
  'nodejs_active_resources_total',
];

/** The parts of a `NextHop` that the metrics read. */
export interface MeasuredNextHop {
  readonly name: string;
  readonly circuit: CircuitState;
  readonly stats: Readonly<Record<string, { readonly connected: number }>>;
  readonly ejectedAddresses: readonly string[];
}

/** The Prometheus metrics of a service and its process. */
export class Metrics {
  readonly registry = new Registry();
  private readonly nextHops: MeasuredNextHop[] = [];
  private readonly serverDurations = new DurationHistogram(
    'http_server_request_duration_seconds',
    'Duration of requests to this service.',
    ['method', 'route', 'status'],
    BUCKETS_SECONDS,
  );
  private readonly clientDurations = new DurationHistogram(
    'http_client_request_duration_seconds',
    'Duration of exchanges with a next hop, retries included; error is an RFC 9209 type or empty.',
    ['next_hop', 'status', 'error'],
    BUCKETS_SECONDS,
  );
  private readonly retries = new Counter({
    name: 'http_client_retries_total',
    help: 'Repeated requests to a next hop; probes count as hedges.',
    labelNames: ['next_hop', 'kind'],
    registers: [this.registry],
  });
  private readonly hedgesWon = new Counter({
    name: 'http_client_hedges_won_total',
    help: 'Hedges whose response was used.',
    labelNames: ['next_hop'],
    registers: [this.registry],
  });
  private readonly exhaustedBudgets = new Counter({
    name: 'http_client_retry_budget_exhausted_total',
    help: 'Retries and hedges that the retry budget did not allow.',
    labelNames: ['next_hop'],
    registers: [this.registry],
  });

  /** @param inFlight returns the number of requests in flight */
  constructor(inFlight: () => number) {
    for (const histogram of [this.serverDurations, this.clientDurations])
      this.registry.registerMetric(histogram.asMetric());
    collectDefaultMetrics({ register: this.registry });
    for (const name of MISNAMED_GAUGES) this.registry.removeSingleMetric(name);
    this.gauge('http_server_requests_in_flight', 'Requests in flight.', [], (gauge) => gauge.set(inFlight()));
    this.nextHopGauge(
      'http_client_circuit_state',
      'State of the circuit breaker: 0 closed, 1 half open, 2 open.',
      ({ circuit }) => CIRCUIT_VALUES[circuit],
    );
    this.nextHopGauge('http_client_connections', 'Open connections to a next hop.', connectionsOf);
    this.nextHopGauge(
      'http_client_addresses',
      'Addresses that the name of a next hop resolves to.',
      ({ stats }) => Object.keys(stats).length,
    );
    this.nextHopGauge(
      'http_client_ejected_addresses',
      'Addresses of a next hop that are ejected.',
      ({ ejectedAddresses }) => ejectedAddresses.length,
    );
  }

  /** Adds a next hop to the exported metrics. */
  watch(nextHop: MeasuredNextHop) {
    this.nextHops.push(nextHop);
    for (const error of COMMON_ERRORS) this.clientDurations.init(nextHop.name, '', error);
    for (const kind of ['retry', 'hedge']) this.retries.inc({ next_hop: nextHop.name, kind }, 0);
    this.hedgesWon.inc({ next_hop: nextHop.name }, 0);
    this.exhaustedBudgets.inc({ next_hop: nextHop.name }, 0);
  }

  requestEnded(method: string, route: string, status: number, durationMs: number) {
    this.serverDurations.observe(KNOWN_METHODS.has(method) ? method : '_OTHER', route, status, durationMs);
  }

  /**
   * @param status undefined if there was none
   * @param error empty on success
   */
  exchangeEnded(nextHop: string, status: number | undefined, error: string, durationMs: number) {
    this.clientDurations.observe(nextHop, status ?? '', error, durationMs);
  }

  requestRepeated(nextHop: string, kind: 'retry' | 'hedge') {
    this.retries.inc({ next_hop: nextHop, kind });
  }

  hedgeWon(nextHop: string) {
    this.hedgesWon.inc({ next_hop: nextHop });
  }

  budgetExhausted(nextHop: string) {
    this.exhaustedBudgets.inc({ next_hop: nextHop });
  }

  private nextHopGauge(name: string, help: string, read: (nextHop: MeasuredNextHop) => number) {
    this.gauge(name, help, ['next_hop'], (gauge) => {
      for (const nextHop of this.nextHops) gauge.set({ next_hop: nextHop.name }, read(nextHop));
    });
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

function connectionsOf({ stats }: MeasuredNextHop) {
  return Object.values(stats).reduce((sum, { connected }) => sum + connected, 0);
}
