import type { Metric } from 'prom-client';

type LabelValue = string | number;

/**
 * A histogram of durations for a prom-client registry. prom-client's own makes a string of all labels to
 * find the series at each observation; here it is three look-ups (docs/decisions/0008-hot-path.md).
 */
export class DurationHistogram {
  readonly type = 'histogram';
  readonly aggregator = 'sum';
  private readonly byFirst = new Map<LabelValue, Map<LabelValue, Map<LabelValue, Series>>>();
  private readonly all: Series[] = [];

  constructor(
    readonly name: string,
    readonly help: string,
    private readonly labelNames: readonly [string, string, string],
    /** Upper bounds of the buckets, in seconds. */
    private readonly bounds: readonly number[],
  ) {}

  observe(first: LabelValue, second: LabelValue, third: LabelValue, durationMs: number) {
    const series = this.byFirst.get(first)?.get(second)?.get(third) ?? this.add(first, second, third);
    const seconds = durationMs / 1000;
    let bucket = 0;
    while (bucket < this.bounds.length && seconds > (this.bounds[bucket] as number)) bucket++;
    series.counts[bucket] = (series.counts[bucket] as number) + 1;
    series.sum += seconds;
  }

  /** What prom-client's registry asks of a metric. */
  async get() {
    const { name, help, type, aggregator } = this;
    return { name, help, type, aggregator, values: this.all.flatMap((series) => this.valuesOf(series)) };
  }

  asMetric() {
    return this as unknown as Metric;
  }

  private add(first: LabelValue, second: LabelValue, third: LabelValue) {
    const [one, two, three] = this.labelNames;
    const labels = { [one]: String(first), [two]: String(second), [three]: String(third) };
    const series = { labels, counts: new Array<number>(this.bounds.length + 1).fill(0), sum: 0 };
    const bySecond = getOrAdd(this.byFirst, first, () => new Map<LabelValue, Map<LabelValue, Series>>());
    getOrAdd(bySecond, second, () => new Map<LabelValue, Series>()).set(third, series);
    this.all.push(series);
    return series;
  }

  private valuesOf({ labels, counts, sum }: Series) {
    let count = 0;
    const buckets = counts.map((inBucket, place) => {
      count += inBucket;
      return {
        metricName: `${this.name}_bucket`,
        labels: { le: this.bounds[place] ?? '+Inf', ...labels },
        value: count,
      };
    });
    return [
      ...buckets,
      { metricName: `${this.name}_sum`, labels, value: sum },
      { metricName: `${this.name}_count`, labels, value: count },
    ];
  }
}

interface Series {
  labels: Readonly<Record<string, string>>;
  /** By bucket; the last one has no upper bound. */
  counts: number[];
  sum: number;
}

function getOrAdd<Value>(map: Map<LabelValue, Value>, key: LabelValue, make: () => Value): Value {
  const found = map.get(key) ?? make();
  map.set(key, found);
  return found;
}
