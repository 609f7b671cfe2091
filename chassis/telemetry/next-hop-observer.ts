import type { AttemptInfo, Observer } from 'next-hop';
import type { Logger } from './logger';
import type { Metrics } from './metrics';
import type { RequestRecord } from './request-record';
import type { ClientSpan } from './spans';

export interface NextHopObserverOptions {
  /** The name of the next hop in logs, metrics and traces. */
  name: string;
  log: Logger;
  metrics?: Metrics | undefined;
  /** Whether attempts carry trace context, which should not be sent to third parties. */
  propagatesTrace?: boolean;
}

/** Returns an observer that reports to logs, metrics, traces and the record of the calling request. */
export function nextHopObserver(options: NextHopObserverOptions): Observer<RequestRecord> {
  const { name, log, metrics, propagatesTrace = true } = options;
  const spans = new Map<AttemptInfo, ClientSpan>();
  const reportRepeat = (kind: 'retry' | 'hedge') => {
    metrics?.requestRepeated(name, kind);
    log.debug({ nextHop: name, kind }, 'request repeated');
  };
  return {
    attemptStarted(attempt, { context, origin, method, path }) {
      if (attempt.kind !== 'first') reportRepeat(attempt.kind);
      if (context?.span === undefined) return undefined;
      const span = context.span.startClientSpan(name, origin, method, path, attempt.number - 1);
      spans.set(attempt, span);
      return propagatesTrace ? span.headers : undefined;
    },
    attemptEnded(attempt, outcome) {
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
    circuitChanged: (circuit) => log.warn({ nextHop: name, circuit }, 'circuit changed'),
  };
}
