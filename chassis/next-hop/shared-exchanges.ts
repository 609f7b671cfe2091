import type { Answer } from './answer';
import { CallerLeft, type HopFailure } from './failure';

/** Told once: an answer, or why there is none. */
export type Settle = (failure: HopFailure | CallerLeft | undefined, answer?: Answer) => void;

/** Something that a caller waits for, and may leave. */
export interface Awaited {
  abandon(): void;
}

/** Exchanges under way that several callers wait for: those that ask for the same path at the same time. */
export class SharedExchanges {
  private readonly underWay = new Map<string, Shared>();

  /** Joins the exchange for `path`, or has `begin` begin one. */
  join(path: string, settle: Settle, begin: (settle: Settle) => Awaited): Awaited {
    const shared = this.underWay.get(path);
    return shared === undefined ? this.first(path, settle, begin) : shared.join(settle);
  }

  private first(path: string, settle: Settle, begin: (settle: Settle) => Awaited) {
    const shared = new Shared(() => {
      if (this.underWay.get(path) === shared) this.underWay.delete(path);
    });
    this.underWay.set(path, shared);
    const caller = shared.join(settle);
    shared.begin(begin);
    return caller;
  }
}

class Shared {
  private readonly callers: SharedCaller[] = [];
  private waiting = 0;
  private exchange: Awaited | undefined;

  constructor(private readonly over: () => void) {}

  begin(begin: (settle: Settle) => Awaited) {
    this.exchange = begin((failure, answer) => {
      this.over();
      for (const caller of this.callers) caller.settle(failure, answer);
    });
  }

  join(settle: Settle): Awaited {
    const caller = new SharedCaller(this, settle);
    this.callers.push(caller);
    this.waiting++;
    return caller;
  }

  /** One caller left. The exchange goes on while there is another. */
  left() {
    if (--this.waiting > 0) return;
    this.over();
    this.exchange?.abandon();
  }
}

class SharedCaller implements Awaited {
  private isSettled = false;

  constructor(
    private readonly shared: Shared,
    private readonly settleCaller: Settle,
  ) {}

  settle(failure: HopFailure | CallerLeft | undefined, answer?: Answer) {
    if (this.isSettled) return;
    this.isSettled = true;
    this.settleCaller(failure, answer);
  }

  abandon() {
    if (this.isSettled) return;
    this.settle(new CallerLeft());
    this.shared.left();
  }
}
