const BUCKETS = 10;
const BUCKET_MS = 1000;
const MIN_RETRIES = 10;

/**
 * Limits retries, hedges and probes together to a tenth of the exchanges of the last ten seconds, plus ten, so that
 * a dead or slow next hop gets little more load than a healthy one. Times are milliseconds of one monotonic clock.
 */
export class RetryBudget {
  private readonly exchanges = new Array<number>(BUCKETS).fill(0);
  private readonly retries = new Array<number>(BUCKETS).fill(0);
  private current = 0;

  /** @param onExhausted called for each retry or hedge that the budget does not allow */
  constructor(private readonly onExhausted: () => void = () => {}) {}

  /** Counts an exchange. */
  deposit(nowMs: number) {
    this.count(this.exchanges, nowMs);
  }

  /** Takes one retry from the budget. Returns false if none is left. */
  withdraw(nowMs: number): boolean {
    return this.take(nowMs, 1 / 10) || this.reject();
  }

  /**
   * Takes one hedge. Hedges and probes get only half of the share, so that some is left for retries, without which
   * requests fail.
   */
  withdrawHedge(nowMs: number): boolean {
    return this.take(nowMs, 1 / 20) || this.reject();
  }

  /** Takes one probe. If none is left, a later request sends it. */
  withdrawProbe(nowMs: number): boolean {
    return this.take(nowMs, 1 / 20);
  }

  private reject() {
    this.onExhausted();
    return false;
  }

  private take(nowMs: number, share: number) {
    this.clearOldBuckets(nowMs);
    if (sum(this.retries) >= sum(this.exchanges) * share + MIN_RETRIES) return false;
    this.count(this.retries, nowMs);
    return true;
  }

  private count(buckets: number[], nowMs: number) {
    this.clearOldBuckets(nowMs);
    const bucket = this.current % BUCKETS;
    buckets[bucket] = (buckets[bucket] ?? 0) + 1;
  }

  private clearOldBuckets(nowMs: number) {
    const now = Math.floor(nowMs / BUCKET_MS);
    if (now === this.current) return;
    for (let bucket = Math.max(this.current + 1, now - BUCKETS + 1); bucket <= now; bucket++) {
      this.exchanges[bucket % BUCKETS] = 0;
      this.retries[bucket % BUCKETS] = 0;
    }
    this.current = now;
  }
}

function sum(buckets: readonly number[]) {
  let total = 0;
  for (const count of buckets) total += count;
  return total;
}
