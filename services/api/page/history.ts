import { formatMs } from './attempts.js';
import { describeFailure } from './errors.js';
import type { Exchange } from './request.js';

const MAX_ENTRIES = 100;

/** The table of the requests that the page has sent, newest first. */
export class RequestHistory {
  constructor(private readonly body: HTMLTableSectionElement) {}

  add(exchange: Exchange) {
    // The section appears with its first entry, so that the first list of books does not move it down.
    this.body.closest('section')?.removeAttribute('hidden');
    const row = this.body.insertRow(0);
    const { startedAt, method, path, status, durationMs, requestId, failure } = exchange;
    row.insertCell().textContent = startedAt.toLocaleTimeString();
    row
      .insertCell()
      .append(`${method} ${path}`, ...(failure ? [createErrorText(describeFailure(failure))] : []));
    row.insertCell().textContent = `${status === 0 ? 'none' : status} · ${formatMs(durationMs)} ms`;
    row.insertCell().append(...(requestId ? withCopyButton(requestId) : []));
    if (failure) row.dataset.state = 'failed';
    this.body.rows[MAX_ENTRIES]?.remove();
  }
}

function createErrorText(text: string) {
  const element = document.createElement('p');
  element.className = 'error';
  element.textContent = text;
  return element;
}

function withCopyButton(text: string) {
  const code = document.createElement('code');
  code.textContent = text;
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'secondary small';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', `Copy ${text}`);
  button.addEventListener('click', async () => {
    button.textContent = (await copy(code, text)) ? 'Copied' : 'Selected';
    setTimeout(() => {
      button.textContent = 'Copy';
    }, 1500);
  });
  return [code, ' ', button];
}

// The clipboard API exists in secure contexts only. Otherwise the text is selected and copied the older way.
async function copy(code: HTMLElement, text: string) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection()?.selectAllChildren(code);
    return document.execCommand('copy');
  }
}
