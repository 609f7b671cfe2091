import type { AttemptInfo, Observer } from 'next-hop';
import { ReplicaNumbers } from './attempt-timings';
import type { Logger } from './logger';
import type { Metrics } from './metrics';
import type { RequestRecord } from './request-record';
import type { ClientSpan } from './spans';

export interface NextHopObserverOptions {
  /** The name of the next hop in logs, metrics and traces. */
  name: string;
  log: Logger;
  metrics?: Metrics | undefined;
  /** Whether the next hop is a third party. Its attempts then have no trace context and no `x-attempt-count`. */
  isThirdParty?: boolean;
  /** Whether responses of the service name the replica of the next hop by a number. */
  showsReplicas?: boolean;
}

/** Returns an observer that reports to logs, metrics, traces and the record of the calling request. */
export function nextHopObserver(options: NextHopObserverOptions): Observer<RequestRecord> {
  const { name, log, metrics, isThirdParty = false, showsReplicas = false } = options;
  const replicas = showsReplicas ? new ReplicaNumbers() : undefined;
  const spans = new Map<AttemptInfo, ClientSpan>();
  const reportRepeat = (kind: 'retry' | 'hedge') => {
    metrics?.requestRepeated(name, kind);
    log.debug({ nextHop: name, kind }, 'request repeated');
  };
  return {
    attemptStarted(attempt, { context, origin, method, path }) {
      if (attempt.kind !== 'first') reportRepeat(attempt.kind);
      if (context !== undefined) {
        context.attemptStarted(attempt);
        if (replicas !== undefined) context.replicas = replicas;
      }
      const span = context?.span?.startClientSpan(name, origin, method, path, attempt.number - 1);
      if (span !== undefined) spans.set(attempt, span);
      return isThirdParty ? undefined : headersOf(attempt, span);
    },
    attemptEnded(attempt, outcome, { context, attempts, statusCode }) {
      if (attempts > 1 || statusCode === undefined) context?.attemptEnded(attempt, outcome);
      // The outcome of a 502, 503 or 504 that was discarded for a retry is `ok` too.
      if (attempt.kind === 'hedge' && outcome === 'ok' && attempt.statusCode === statusCode)
        metrics?.hedgeWon(name);
      if (spans.size === 0) return;
      spans.get(attempt)?.end(attempt.statusCode, outcome === 'ok' ? undefined : outcome);
      spans.delete(attempt);
    },
    probeStarted: () => reportRepeat('hedge'),
    responseStarted({ context, startedMs }) {
      context?.nextHopStarted(name, performance.now() - startedMs);
    },
    exchangeEnded({ context, startedMs, statusCode, bodyBytes }, error, isCancelled) {
      const durationMs = performance.now() - startedMs;
      const status = error || isCancelled ? undefined : statusCode;
      context?.nextHopEnded(name, durationMs, status, status && bodyBytes, error);
      // The duration of a cancelled exchange is meaningless.
      if (!isCancelled) metrics?.exchangeEnded(name, status, error?.code ?? '', durationMs);
    },
    budgetExhausted: () => metrics?.budgetExhausted(name),
    circuitChanged: (circuit) => log.warn({ nextHop: name, circuit }, 'circuit changed'),
  };
}

function headersOf({ number }: AttemptInfo, span: ClientSpan | undefined) {
  if (number === 1) return span?.headers;
  return ['x-attempt-count', String(number), ...(span?.headers ?? [])];
}
