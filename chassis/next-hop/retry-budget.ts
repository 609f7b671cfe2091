const BUCKETS = 10;
const BUCKET_MS = 1000;

/**
 * How many requests may be sent beyond the first of each exchange: a tenth of the exchanges of the
 * last ten seconds, and ten more. It keeps retries and hedges from hitting a dead or slow next hop
 * harder than a live one. Times are milliseconds of one monotonic clock.
 */
export class RetryBudget {
  private readonly exchanges = new Array<number>(BUCKETS).fill(0);
  private readonly extras = new Array<number>(BUCKETS).fill(0);
  private current = 0;

  /** Counts an exchange. */
  deposit(nowMs: number) {
    this.count(this.exchanges, nowMs);
  }

  /** Takes one more request out of the budget; false when it is used up. */
  withdraw(nowMs: number): boolean {
    this.forget(nowMs);
    if (sum(this.extras) >= sum(this.exchanges) / 10 + 10) return false;
    this.count(this.extras, nowMs);
    return true;
  }

  private count(buckets: number[], nowMs: number) {
    this.forget(nowMs);
    const bucket = this.current % BUCKETS;
    buckets[bucket] = (buckets[bucket] ?? 0) + 1;
  }

  private forget(nowMs: number) {
    const now = Math.floor(nowMs / BUCKET_MS);
    if (now === this.current) return;
    for (let bucket = Math.max(this.current + 1, now - BUCKETS + 1); bucket <= now; bucket++) {
      this.exchanges[bucket % BUCKETS] = 0;
      this.extras[bucket % BUCKETS] = 0;
    }
    this.current = now;
  }
}

function sum(buckets: readonly number[]) {
  let total = 0;
  for (const count of buckets) total += count;
  return total;
}
