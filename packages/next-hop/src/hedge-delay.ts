const WINDOW_RESPONSES = 1000;
const MIN_RESPONSES = 100;
const MIN_DELAY_MS = 10;
// Each bucket is a tenth wider than the one below it. The first one holds everything up to the minimum delay.
const BUCKET_GROWTH = Math.log(1.1);

/**
 * How long to wait for a response before hedging: the 99th percentile of the last 1000 response times, at least 10 ms,
 * and `maxMs` before the first 100 responses. So about one request in a hundred is hedged ("The Tail at Scale", Dean
 * and Barroso, 2013).
 */
export class HedgeDelay {
  /** The delay in milliseconds. */
  ms: number;
  private readonly counts: Uint16Array;
  private readonly window = new Uint8Array(WINDOW_RESPONSES);
  private responses = 0;

  constructor(private readonly maxMs: number) {
    this.ms = maxMs;
    this.counts = new Uint16Array(bucketOf(maxMs) + 1);
  }

  /** Adds a response time, or the time that a cancelled attempt has waited for a response. */
  record(ms: number) {
    const bucket = bucketOf(Math.min(ms, this.maxMs));
    const position = this.responses++ % WINDOW_RESPONSES;
    let evicted = 0;
    if (this.responses > WINDOW_RESPONSES) {
      evicted = this.window[position] as number;
      this.count(evicted, -1);
    }
    this.window[position] = bucket;
    this.count(bucket, 1);
    // In a full window, replacing a response with one from the same bucket does not change the percentile.
    if (bucket !== evicted || this.responses <= WINDOW_RESPONSES) this.update();
  }

  private count(bucket: number, change: number) {
    this.counts[bucket] = (this.counts[bucket] as number) + change;
  }

  private update() {
    if (this.responses < MIN_RESPONSES) return;
    const slowestCount = Math.min(this.responses, WINDOW_RESPONSES) / 100;
    let bucket = this.counts.length - 1;
    for (let countAbove = this.counts[bucket] as number; countAbove <= slowestCount && bucket > 0; )
      countAbove += this.counts[--bucket] as number;
    this.ms = Math.min(Math.ceil(MIN_DELAY_MS * Math.exp(bucket * BUCKET_GROWTH)), this.maxMs);
  }
}

function bucketOf(ms: number) {
  return ms <= MIN_DELAY_MS ? 0 : Math.ceil(Math.log(ms / MIN_DELAY_MS) / BUCKET_GROWTH);
}
