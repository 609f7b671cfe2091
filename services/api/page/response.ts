import { formatMs } from './attempts.js';
import { describeFailure } from './errors.js';
import type { Exchange } from './request.js';

const MAX_BODY_LENGTH = 2000;

/** The element with this id. */
export function byId<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  return document.getElementById(id) as Kind;
}

/** Marks the response as outdated until the next one is shown. */
export function markBusy() {
  byId('response').setAttribute('aria-busy', 'true');
}

/** Shows the response of the last action, with a message that explains it if there is one. */
export function showResponse(
  exchange: Exchange,
  message = exchange.failure ? describeFailure(exchange.failure) : '',
) {
  const { method, path, status, durationMs, requestId, body, failure } = exchange;
  const parts = [
    `${method} ${path}`,
    status === 0 ? 'no response' : String(status),
    `${formatMs(durationMs)} ms`,
    ...(requestId ? [`request id ${requestId}`] : []),
  ];
  showResult(parts.join(' · '), message, failure !== undefined || status >= 400, body);
}

/** Shows the result of the last action: a summary, a message that explains it, and the response body. */
export function showResult(summaryText: string, message: string, hasFailed: boolean, body = '') {
  const summary = document.createElement('p');
  summary.className = 'summary';
  summary.textContent = summaryText;
  const element = byId('response');
  element.dataset.state = hasFailed ? 'failed' : 'ok';
  element.replaceChildren(summary, ...paragraph(message), ...preformatted(body));
  // The keyboard must be able to scroll a long response; a short one needs no tab stop.
  element.tabIndex = element.scrollHeight > element.clientHeight ? 0 : -1;
  element.removeAttribute('aria-busy');
}

function paragraph(text: string) {
  if (text === '') return [];
  const element = document.createElement('p');
  element.textContent = text;
  return [element];
}

function preformatted(text: string) {
  if (text === '') return [];
  const element = document.createElement('pre');
  element.textContent = text.length > MAX_BODY_LENGTH ? `${text.slice(0, MAX_BODY_LENGTH)} …` : text;
  return [element];
}
