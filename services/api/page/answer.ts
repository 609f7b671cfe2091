import type { Outcome } from './ask.js';
import { inWords } from './causes.js';
import { rounded } from './picture.js';

const LONGEST_SHOWN = 2000;

/** The element with this id. */
export function byId<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  return document.getElementById(id) as Kind;
}

/** Marks the answer as outdated until the next one is told. */
export function markBusy() {
  byId('answer').setAttribute('aria-busy', 'true');
}

/** Shows an answer as the last one, with a sentence for people where there is one. */
export function tell(outcome: Outcome, sentence = outcome.failure ? inWords(outcome.failure) : '') {
  const { method, path, status, ms, requestId, text } = outcome;
  const line = document.createElement('p');
  line.className = 'line';
  const parts = [`${method} ${path}`, status === 0 ? 'no answer' : String(status), `${rounded(ms)} ms`];
  line.textContent = [...parts, ...(requestId ? [`request id ${requestId}`] : [])].join(' · ');
  const answer = byId('answer');
  answer.dataset.state = status === 0 || status >= 400 ? 'failed' : 'ok';
  answer.replaceChildren(line, ...paragraph(sentence), ...body(text));
  // The keyboard must be able to scroll a long answer; a short one needs no stop.
  answer.tabIndex = answer.scrollHeight > answer.clientHeight ? 0 : -1;
  answer.removeAttribute('aria-busy');
}

function paragraph(sentence: string) {
  if (sentence === '') return [];
  const element = document.createElement('p');
  element.textContent = sentence;
  return [element];
}

function body(text: string) {
  if (text === '') return [];
  const element = document.createElement('pre');
  element.textContent = text.length > LONGEST_SHOWN ? `${text.slice(0, LONGEST_SHOWN)} …` : text;
  return [element];
}
