import { type Attempt, AttemptList, formatMs, hopMsOf } from './attempts.js';
import { describeFailure } from './errors.js';
import { explain } from './explanation.js';
import type { Exchange } from './request.js';
import { byId } from './response.js';
import { mostNotable, showResults } from './ten-at-once.js';

type State = 'idle' | 'pending' | 'ok' | 'failed';

/** The parts of the diagram that a request to each target passes. */
const PATH_PARTS: Readonly<Record<string, readonly string[]>> = {
  api2: ['browser', 'browser-api', 'api', 'api-api2', 'api2'],
  external: ['browser', 'browser-api', 'api', 'api-external', 'external'],
};
/** The parts of the diagram that are marked when a component failed. */
const FAILED_PARTS: Readonly<Record<string, readonly string[]>> = {
  browser: ['browser-api', 'api'],
  api: ['api'],
  api2: ['api-api2', 'api2'],
  external: ['api-external', 'external'],
};

/** The diagram of the services: highlights the path of a request and shows the duration of each hop. */
export class Diagram {
  private readonly parts: Map<string, HTMLElement>;
  private readonly caption = byId('diagram-caption');
  private readonly attempts = new AttemptList(byId('attempts'), byId('axis-end'));

  constructor() {
    const elements = [...byId('diagram').querySelectorAll<HTMLElement>('[data-part]')];
    this.parts = new Map(elements.map((element) => [String(element.dataset.part), element]));
  }

  /** Highlights the path of a request that has been sent. */
  showRequest(method: string, path: string, count = 1) {
    const pathParts = PATH_PARTS[targetOf(path)] ?? [];
    for (const [name, part] of this.parts) setState(part, pathParts.includes(name) ? 'pending' : 'idle');
    this.caption.textContent = `${count > 1 ? `${count} × ` : ''}${method} ${path} in progress …`;
    byId('outcome').setAttribute('aria-busy', 'true');
  }

  /** Shows how far the request got, each attempt and hop with its time, what failed, and why. */
  showResult(exchange: Exchange) {
    this.showPath(exchange);
    this.showOutcome(exchange, exchange.attempts, []);
  }

  /** Shows the results of concurrent requests, and the path of the one that is most notable. */
  showResults(exchanges: readonly Exchange[]) {
    const notable = mostNotable(exchanges);
    this.showPath(notable);
    this.caption.textContent = `${exchanges.length} × ${notable.method} ${notable.path}. The diagram shows ${notable.failure ? 'one that failed' : 'the slowest one'}.`;
    this.showOutcome(notable, [], exchanges);
  }

  private showOutcome(exchange: Exchange, attempts: readonly Attempt[], results: readonly Exchange[]) {
    byId('outcome').removeAttribute('aria-busy');
    this.attempts.show(attempts, exchange.failure?.type);
    showResults(byId('results'), results);
    const explanation = explain(exchange);
    const element = byId('explanation');
    element.hidden = explanation === undefined;
    if (explanation === undefined) return;
    const [what, file, role] = explanation;
    const code = document.createElement('code');
    code.textContent = file;
    element.replaceChildren(`${what} `, code, ` ${role}`);
  }

  private showPath(exchange: Exchange) {
    const target = targetOf(exchange.path);
    const hopMs = hopMsOf(exchange.attempts);
    const apiMs = (exchange.totalMs ?? 0) - (hopMs ?? 0);
    const failed = FAILED_PARTS[exchange.failure?.component ?? ''] ?? [];
    for (const name of PATH_PARTS[target] ?? []) {
      const wasReached = hopMs !== undefined || !name.includes(target);
      const state = failed.includes(name) ? 'failed' : wasReached && exchange.status !== 0 ? 'ok' : 'idle';
      setState(this.parts.get(name), name === 'browser' ? 'ok' : state);
    }
    this.setDuration('browser-api', exchange.durationMs);
    this.setDuration('api', exchange.status === 0 ? undefined : apiMs);
    this.setDuration(`api-${target}`, hopMs);
    this.caption.textContent = describe(exchange, target, hopMs);
  }

  private setDuration(name: string, ms: number | undefined) {
    const label = this.parts.get(name)?.querySelector('.ms');
    if (label) label.textContent = ms === undefined ? '' : `${formatMs(ms)} ms`;
  }
}

function targetOf(path: string) {
  return path.startsWith('/data') ? 'external' : 'api2';
}

function setState(part: HTMLElement | undefined, state: State) {
  if (part === undefined) return;
  part.dataset.state = state;
  const label = part.querySelector('.ms');
  if (label) label.textContent = '';
}

function describe(exchange: Exchange, target: string, hopMs: number | undefined) {
  const { method, path, status, durationMs, failure, headers } = exchange;
  const result = `${method} ${path}: ${status === 0 ? 'no response' : status} after ${formatMs(durationMs)} ms`;
  const name = target === 'external' ? 'the external API' : target;
  const hop = hopMs === undefined ? `${name} was not called` : `${name} took ${formatMs(hopMs)} ms`;
  const reason = failure ? ` ${describeFailure(failure)}.` : '';
  const age = headers.get('age');
  const cache = age === null ? '' : ` The response came from the cache and is ${age} s old.`;
  return `${result}; ${hop}.${reason}${cache}`;
}
