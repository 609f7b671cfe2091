// https://github.com/connor4312/cockatiel#wrappolicies
import {
  ConsecutiveBreaker,
  circuitBreaker,
  ExponentialBackoff,
  handleAll,
  retry,
  TimeoutStrategy,
  timeout,
  wrap,
} from 'cockatiel';

const deadline = timeout(2000, TimeoutStrategy.Aggressive);
const retries = retry(handleAll, {
  maxAttempts: 2,
  backoff: new ExponentialBackoff({ initialDelay: 10, maxDelay: 20 }),
});
// The documentation's example also opens after five failures, but half-opens after ten seconds.
const breaker = circuitBreaker(handleAll, { halfOpenAfter: 1000, breaker: new ConsecutiveBreaker(5) });
const attempt = timeout(650, TimeoutStrategy.Aggressive);
const getPolicy = wrap(deadline, retries, breaker, attempt);
// A POST is not retried, because api2 may have stored the book before the attempt failed.
const postPolicy = wrap(breaker, attempt);

async function send(path, init) {
  const response = await fetch(`http://api2:8080${path}`, init);
  const body = await response.text();
  if (!response.ok) throw new Error(`status ${response.status}`);
  return body;
}

export const get = () => getPolicy.execute(({ signal }) => send('/respond', { signal }));

export const post = (body) =>
  postPolicy.execute(({ signal }) =>
    send('/books', { method: 'POST', headers: { 'content-type': 'application/json' }, body, signal }),
  );
