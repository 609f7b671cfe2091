import type { AttemptInfo, AttemptOutcome } from 'next-hop';

interface AttemptTiming {
  readonly attempt: AttemptInfo;
  endedMs: number | undefined;
  outcome: AttemptOutcome | undefined;
}

/** The times and outcomes of the attempts of one exchange. */
export class AttemptTimings {
  private readonly timings: AttemptTiming[] = [];

  constructor(first: AttemptInfo | undefined) {
    if (first !== undefined) this.started(first);
  }

  get isRepeated() {
    return this.timings.length > 1;
  }

  started(attempt: AttemptInfo) {
    this.timings.push({ attempt, endedMs: undefined, outcome: undefined });
  }

  ended(attempt: AttemptInfo, outcome: AttemptOutcome) {
    const timing = this.timings.find((candidate) => candidate.attempt === attempt);
    if (timing === undefined) return;
    timing.endedMs = performance.now();
    timing.outcome = outcome;
  }

  /** Returns the entries for `Server-Timing`. An attempt that has not ended is the one whose response is being sent. */
  entries(nextHop: string, nowMs: number): string {
    const entries = this.timings.map(({ attempt, endedMs = nowMs, outcome = 'ok' }) => {
      const name = `${nextHop}.${attempt.number}`;
      return `${name};dur=${toHundredths(endedMs - attempt.startedMs)};desc="${outcome}"`;
    });
    return entries.join(', ');
  }

  /** Returns the value of `x-attempts`. */
  list(replicas: ReplicaNumbers | undefined): string {
    return attemptList(
      this.timings.map(({ attempt }) => attempt),
      replicas,
    );
  }
}

/**
 * Numbers the addresses of a next hop in the order in which they first appear in a response, so that responses can
 * name the replica without revealing its address.
 */
export class ReplicaNumbers {
  private readonly numbers = new Map<string, number>();

  numberOf(address: string): number {
    const number = this.numbers.get(address) ?? this.numbers.size + 1;
    this.numbers.set(address, number);
    return number;
  }
}

/** Returns the value of `x-attempts`: a list of structured fields (RFC 9651), one for each attempt. */
export function attemptList(attempts: readonly AttemptInfo[], replicas: ReplicaNumbers | undefined): string {
  const firstMs = attempts[0]?.startedMs ?? 0;
  const items = attempts.map(({ kind, startedMs, address }) => {
    const item = `${kind};start=${toHundredths(startedMs - firstMs)}`;
    return replicas === undefined ? item : `${item};replica=${replicas.numberOf(address)}`;
  });
  return items.join(', ');
}

/** Returns milliseconds with two decimals. Five times as fast as `toFixed(2)`. */
export function toHundredths(ms: number): string {
  const hundredths = Math.round(ms * 100);
  const fraction = hundredths % 100;
  return `${(hundredths - fraction) / 100}.${fraction < 10 ? '0' : ''}${fraction}`;
}
