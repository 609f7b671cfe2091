import type { Metric } from 'prom-client';

type LabelValue = string | number;

/**
 * A histogram of durations for a prom-client registry. prom-client's own concatenates all labels on each
 * observation; this one does three map lookups (docs/decisions/0008-hot-path.md).
 */
export class DurationHistogram {
  readonly type = 'histogram';
  readonly aggregator = 'sum';
  private readonly seriesByLabels = new Map<LabelValue, Map<LabelValue, Map<LabelValue, Series>>>();
  private readonly allSeries: Series[] = [];

  constructor(
    readonly name: string,
    readonly help: string,
    private readonly labelNames: readonly [string, string, string],
    /** Upper bounds of the buckets, in seconds. */
    private readonly bounds: readonly number[],
  ) {}

  observe(first: LabelValue, second: LabelValue, third: LabelValue, durationMs: number) {
    const series = this.seriesByLabels.get(first)?.get(second)?.get(third) ?? this.add(first, second, third);
    const seconds = durationMs / 1000;
    let bucket = 0;
    while (bucket < this.bounds.length && seconds > (this.bounds[bucket] as number)) bucket++;
    series.counts[bucket] = (series.counts[bucket] as number) + 1;
    series.sum += seconds;
  }

  /** Adds a series without any observation, because `rate` and `increase` ignore the first sample of a new series. */
  init(first: LabelValue, second: LabelValue, third: LabelValue) {
    this.add(first, second, third);
  }

  /** Called by prom-client's registry. */
  async get() {
    const { name, help, type, aggregator } = this;
    return {
      name,
      help,
      type,
      aggregator,
      values: this.allSeries.flatMap((series) => this.samplesOf(series)),
    };
  }

  asMetric() {
    return this as unknown as Metric;
  }

  private add(first: LabelValue, second: LabelValue, third: LabelValue) {
    const [firstName, secondName, thirdName] = this.labelNames;
    const labels = { [firstName]: String(first), [secondName]: String(second), [thirdName]: String(third) };
    const series = { labels, counts: new Array<number>(this.bounds.length + 1).fill(0), sum: 0 };
    const bySecond = getOrCreate(
      this.seriesByLabels,
      first,
      () => new Map<LabelValue, Map<LabelValue, Series>>(),
    );
    getOrCreate(bySecond, second, () => new Map<LabelValue, Series>()).set(third, series);
    this.allSeries.push(series);
    return series;
  }

  private samplesOf({ labels, counts, sum }: Series) {
    let count = 0;
    const buckets = counts.map((bucketCount, index) => {
      count += bucketCount;
      return {
        metricName: `${this.name}_bucket`,
        labels: { le: this.bounds[index] ?? '+Inf', ...labels },
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
  /** One count per bucket; the last bucket has no upper bound. */
  counts: number[];
  sum: number;
}

function getOrCreate<Value>(map: Map<LabelValue, Value>, key: LabelValue, create: () => Value): Value {
  const value = map.get(key) ?? create();
  map.set(key, value);
  return value;
}
