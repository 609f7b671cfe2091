import { formatMs } from './attempts.js';
import type { Exchange } from './request.js';

/** The first request that an open circuit rejected, else the first one that failed, else the slowest. */
export function mostNotable(exchanges: readonly Exchange[]): Exchange {
  const slowest = exchanges.reduce((one, other) => (one.durationMs > other.durationMs ? one : other));
  return exchanges.find(isCircuitOpen) ?? exchanges.find(({ failure }) => failure) ?? slowest;
}

/** Sums up concurrent requests: how many got each status, and how many each replica served. */
export function summarize(exchanges: readonly Exchange[]): string {
  return `${countEach(exchanges.map(statusOf))}: ${countEach(exchanges.map(sourceOf))}.`;
}

/** Shows one compact item for each of the requests. */
export function showResults(list: HTMLElement, exchanges: readonly Exchange[]) {
  list.hidden = exchanges.length === 0;
  list.replaceChildren(...exchanges.map(createItem));
}

function createItem(exchange: Exchange) {
  const { attempts, durationMs, totalMs = durationMs, failure } = exchange;
  const item = document.createElement('li');
  item.dataset.state = failure ? 'failed' : 'ok';
  const count = `${attempts.length} attempt${attempts.length === 1 ? '' : 's'}`;
  // The time in api, because the browser sends no more than six requests at once to a host over HTTP/1.1.
  const texts = [sourceOf(exchange), `${statusOf(exchange)} · ${formatMs(totalMs)} ms`, count];
  item.append(...texts.flatMap((text) => [createSpan(text), ' ']));
  return item;
}

function createSpan(text: string) {
  const element = document.createElement('span');
  element.textContent = text;
  return element;
}

function statusOf({ status }: Exchange) {
  return status === 0 ? 'no response' : String(status);
}

function isCircuitOpen({ failure }: Exchange) {
  return failure?.type === 'destination_unavailable';
}

function sourceOf(exchange: Exchange) {
  const { attempts } = exchange;
  const { replica } = attempts.find(({ isWinner }) => isWinner) ?? attempts.at(-1) ?? {};
  if (replica !== undefined) return `replica ${replica}`;
  return isCircuitOpen(exchange) ? 'circuit open' : attempts.length > 0 ? 'api2' : 'api';
}

function countEach(texts: readonly string[]) {
  return [...new Set(texts)]
    .sort()
    .map((text) => `${texts.filter((other) => other === text).length} × ${text}`)
    .join(', ');
}
