import { type Attempt, formatMs } from './attempts.js';
import type { Exchange } from './request.js';

/** What happened to a request, the file that dealt with it, and what that file does. */
type Explanation = readonly [what: string, file: string, role: string];

const EXCHANGE = 'packages/next-hop/src/exchange.ts';

const OPEN_CIRCUIT: Explanation = [
  'Most of the recent requests to api2 failed, so the circuit is open: api responds without calling api2.',
  'packages/next-hop/src/circuit-breaker.ts',
  'lets one request through after a second at most, and closes the circuit if that succeeds.',
];
const CUT_OFF: Explanation = [
  'The response was cut off after it had started, so api closed the connection: it must not look complete.',
  'services/api/gateway.ts',
  'passes on what api2 sends as it arrives.',
];
const INCOMPLETE: Explanation = [
  'api2 closed the connection in the middle of its response. A response that has started is not retried.',
  'packages/next-hop/src/get.ts',
  'reads the whole response before api uses any of it, so half a response never reaches the browser.',
];

/** Explains a request to api2 by its attempts and its failure. Returns undefined if there is nothing to explain. */
export function explain(exchange: Exchange): Explanation | undefined {
  const { attempts, failure, method, path, fault } = exchange;
  if (path === '/data') return undefined;
  const winner = attempts.find(({ isWinner }) => isWinner);
  if (failure?.type === 'destination_unavailable') return OPEN_CIRCUIT;
  if (failure?.type === 'incomplete') return CUT_OFF;
  if (failure?.type === 'http_response_incomplete') return INCOMPLETE;
  const [first] = attempts;
  if (first === undefined) return undefined;
  if (winner && attempts.length > 1) return explainWinner(attempts, winner);
  if (failure) return explainFailure(exchange, method === 'GET' || method === 'HEAD', winner !== undefined);
  if (fault === '') return undefined;
  const what = `The response was complete after ${formatMs(first.durationMs)} ms, within the deadline.`;
  return [what, EXCHANGE, 'sets one deadline for the whole exchange: all attempts and the response body.'];
}

function explainWinner(attempts: readonly Attempt[], winner: Attempt): Explanation {
  const hedge = attempts.find(({ kind }) => kind === 'hedge');
  if (hedge === undefined) {
    const [{ outcome } = winner] = attempts;
    const failed = outcome === 'ok' ? 'got an error status' : `failed (${outcome})`;
    const what = `The first attempt ${failed}, so api sent the request again (a retry) and used the response to the retry.`;
    return [
      what,
      EXCHANGE,
      'retries at most twice: a GET or HEAD request, or one of which nothing was sent.',
    ];
  }
  const who = winner === hedge ? 'the hedge' : `attempt ${attempts.indexOf(winner) + 1}`;
  return [
    `api2 had not responded after ${formatMs(hedge.startMs)} ms, so api sent the same request once more (a hedge); ${who} got a response first and won, and api cancelled the other attempt.`,
    'packages/next-hop/src/hedge-delay.ts',
    'chooses that time from the recent response times, so that only unusually slow requests are sent twice.',
  ];
}

function explainFailure(
  { method, status, attempts, failure, fault }: Exchange,
  isRepeatable: boolean,
  hasResponded: boolean,
): Explanation {
  const tried = attempts.length > 1 ? `All ${attempts.length} attempts failed` : 'The only attempt failed';
  const what = hasResponded
    ? `api2 did respond, but with an error status, so api responded with ${status}.`
    : `${tried} (${failure?.type}), so api responded with ${status}.`;
  if (!isRepeatable)
    return [
      what,
      EXCHANGE,
      `does not repeat a ${method} that was sent, because api2 may have executed it already.`,
    ];
  const hasReachedLimit = failure?.type === 'connection_limit_reached';
  if (
    !hasResponded &&
    !hasReachedLimit &&
    attempts.length === 1 &&
    /^(hang|delay|reset).*attempt=1/.test(fault)
  )
    return [
      `${what} The retry budget was used up, so api did not repeat the request.`,
      'packages/next-hop/src/retry-budget.ts',
      'limits retries and hedges to a tenth of the requests of the last ten seconds, plus ten.',
    ];
  if (hasResponded) return [what, EXCHANGE, 'retries a 502, 503 or 504, but only on another replica.'];
  return failure?.type === 'http_response_timeout'
    ? [what, EXCHANGE, 'sets one deadline for all attempts together, so a user never waits longer than that.']
    : [what, EXCHANGE, 'retries at most twice after a connection failure.'];
}
