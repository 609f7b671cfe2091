import type { AbortSignalLike, NextHop, WholeResponse } from 'next-hop';
import { NextHopError } from 'next-hop';
import type { RequestRecord } from '../../../chassis/telemetry/request-record';

/** Requests a path of a next hop on behalf of the request of `record`. In `headers`, names and values alternate. */
export type Get = (path: string, headers: string[], record: RequestRecord) => Promise<WholeResponse>;

/** Returns a `Get` that starts an exchange for each request. */
export function plainGet(nextHop: NextHop<RequestRecord>): Get {
  return (path, headers, record) =>
    nextHop.get(path, { headers, signal: record, context: record, allowProbe: !record.carriesFault });
}

/**
 * Returns a `Get` whose requests for the same path share the exchange in flight (request coalescing). The exchange is
 * cancelled only when all of their clients have disconnected. A request that carries a fault is sent alone.
 */
export function coalescedGet(nextHop: NextHop<RequestRecord>): Get {
  const inFlight = new Map<string, SharedExchange>();
  const getAlone = plainGet(nextHop);
  return (path, headers, record) => {
    if (record.carriesFault) return getAlone(path, headers, record);
    const shared = inFlight.get(path);
    if (shared !== undefined) return shared.join(record);
    const started = new SharedExchange(nextHop.name, () => {
      if (inFlight.get(path) === started) inFlight.delete(path);
    });
    inFlight.set(path, started);
    const response = started.join(record);
    started.settleWith(nextHop.get(path, { headers, signal: started, context: record }));
    return response;
  };
}

/** An exchange that several requests wait for. As a signal, it is aborted when all clients have disconnected. */
class SharedExchange implements AbortSignalLike {
  aborted = false;
  private readonly waiters: Waiter[] = [];
  private disconnected = 0;
  private hasEnded = false;
  private onAbort: (() => void) | undefined;

  constructor(
    private readonly nextHop: string,
    private readonly onEnd: () => void,
  ) {}

  addEventListener(_type: 'abort', listener: () => void) {
    this.onAbort = listener;
  }

  removeEventListener() {
    this.onAbort = undefined;
  }

  join(record: RequestRecord): Promise<WholeResponse> {
    return new Promise((resolve, reject) => {
      const waiter = { record, startedMs: performance.now(), resolve, reject };
      this.waiters.push(waiter);
      record.addEventListener('abort', () => this.leave(waiter));
    });
  }

  settleWith(response: Promise<WholeResponse>) {
    response.then(
      (whole) => {
        this.end(({ resolve }) => resolve(whole), whole, undefined);
      },
      (error: Error) => {
        this.end(({ reject }) => reject(error), undefined, error);
      },
    );
  }

  private end(
    settle: (waiter: Waiter) => void,
    response: WholeResponse | undefined,
    error: Error | undefined,
  ) {
    this.hasEnded = true;
    this.onEnd();
    const failure = error instanceof NextHopError ? error : undefined;
    const [first] = this.waiters;
    const nowMs = performance.now();
    for (const waiter of this.waiters) {
      const { record, startedMs } = waiter;
      // The observer of the exchange updates only the record of the first request.
      if (first !== undefined) record.shareAttempts(first.record);
      if (!record.aborted)
        record.nextHopEnded(
          this.nextHop,
          nowMs - startedMs,
          response?.statusCode,
          response?.bodyBytes,
          failure,
        );
      settle(waiter);
    }
  }

  // A record is also aborted after its response was sent.
  private leave({ record, startedMs, reject }: Waiter) {
    if (this.hasEnded) return;
    record.nextHopStarted(this.nextHop, performance.now() - startedMs);
    reject(new Error('the client disconnected'));
    if (++this.disconnected < this.waiters.length) return;
    this.aborted = true;
    this.onEnd();
    this.onAbort?.();
  }
}

interface Waiter {
  readonly record: RequestRecord;
  readonly startedMs: number;
  readonly resolve: (response: WholeResponse) => void;
  readonly reject: (error: Error) => void;
}
