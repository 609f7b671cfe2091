import type { Outcome } from './ask.js';
import { inWords } from './causes.js';
import { rounded } from './picture.js';

const MOST_LINES = 100;

/** The table of what was asked, the latest first. */
export class Journal {
  constructor(private readonly body: HTMLTableSectionElement) {}

  add(outcome: Outcome) {
    // Shown with the first line, so that the first list of books does not push it down.
    this.body.closest('section')?.removeAttribute('hidden');
    const row = this.body.insertRow(0);
    const { at, method, path, status, ms, requestId, failure } = outcome;
    row.insertCell().textContent = at.toLocaleTimeString();
    row.insertCell().append(`${method} ${path}`, ...(failure ? [paragraph(inWords(failure))] : []));
    row.insertCell().textContent = `${status === 0 ? 'none' : status} · ${rounded(ms)} ms`;
    row.insertCell().append(...(requestId ? copyable(requestId) : []));
    if (failure) row.dataset.state = 'failed';
    this.body.rows[MOST_LINES]?.remove();
  }
}

function paragraph(text: string) {
  const element = document.createElement('p');
  element.className = 'fault';
  element.textContent = text;
  return element;
}

function copyable(text: string) {
  const code = document.createElement('code');
  code.textContent = text;
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'quiet small';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', `Copy ${text}`);
  button.addEventListener('click', async () => {
    button.textContent = (await copied(code, text)) ? 'Copied' : 'Selected';
    setTimeout(() => {
      button.textContent = 'Copy';
    }, 1500);
  });
  return [code, ' ', button];
}

// The clipboard is only for secure origins; elsewhere it is at least selected.
async function copied(code: HTMLElement, text: string) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection()?.selectAllChildren(code);
    return document.execCommand('copy');
  }
}
