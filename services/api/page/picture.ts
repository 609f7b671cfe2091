import type { Outcome } from './ask.js';
import { inWords } from './causes.js';

type State = 'idle' | 'live' | 'ok' | 'failed';

const WAY_TO: Readonly<Record<string, readonly string[]>> = {
  api2: ['browser', 'browser-api', 'api', 'api-api2', 'api2'],
  external: ['browser', 'browser-api', 'api', 'api-external', 'external'],
};
const FAILED_PARTS: Readonly<Record<string, readonly string[]>> = {
  browser: ['browser-api', 'api'],
  api: ['api'],
  api2: ['api-api2', 'api2'],
  external: ['api-external', 'external'],
};

/** The picture of the hops: lights the way of a request, and tells what came of it. */
export class Picture {
  private readonly parts: Map<string, HTMLElement>;

  constructor(
    root: HTMLElement,
    private readonly words: HTMLElement,
  ) {
    const found = [...root.querySelectorAll<HTMLElement>('[data-part]')];
    this.parts = new Map(found.map((part) => [String(part.dataset.part), part]));
  }

  /** A request for `path` is on its way. */
  begin(method: string, path: string) {
    const way = WAY_TO[targetOf(path)] ?? [];
    for (const [name, part] of this.parts) show(part, way.includes(name) ? 'live' : 'idle');
    this.words.textContent = `${method} ${path} is on its way …`;
  }

  /** It was answered, or not. */
  end(outcome: Outcome) {
    const target = targetOf(outcome.path);
    const hopMs = outcome.timings.get(target);
    const ownMs = (outcome.timings.get('total') ?? 0) - (hopMs ?? 0);
    const failed = FAILED_PARTS[outcome.failure?.at ?? ''] ?? [];
    for (const name of WAY_TO[target] ?? []) {
      const wasReached = hopMs !== undefined || !name.includes(target);
      const state = failed.includes(name) ? 'failed' : wasReached && outcome.status !== 0 ? 'ok' : 'idle';
      show(this.parts.get(name), name === 'browser' ? 'ok' : state);
    }
    this.label('browser-api', outcome.ms);
    this.label('api', outcome.status === 0 ? undefined : ownMs);
    this.label(`api-${target}`, hopMs);
    this.words.textContent = describe(outcome, target, hopMs);
  }

  private label(name: string, ms: number | undefined) {
    const label = this.parts.get(name)?.querySelector('.ms');
    if (label) label.textContent = ms === undefined ? '' : `${rounded(ms)} ms`;
  }
}

/** Milliseconds for people: a decimal only where it tells something. */
export function rounded(ms: number) {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}

function targetOf(path: string) {
  return path.startsWith('/data') ? 'external' : 'api2';
}

function show(part: HTMLElement | undefined, state: State) {
  if (part === undefined) return;
  part.dataset.state = state;
  const label = part.querySelector('.ms');
  if (label) label.textContent = '';
}

function describe(outcome: Outcome, target: string, hopMs: number | undefined) {
  const { method, path, status, ms, failure, headers } = outcome;
  const asked = `${method} ${path}: ${status === 0 ? 'no answer' : status} in ${rounded(ms)} ms`;
  const hop = hopMs === undefined ? `${target} was not asked` : `${rounded(hopMs)} ms of them ${target}`;
  const age = headers.get('age');
  const cache = age === null ? '' : ` It came out of the cache, ${age} s old.`;
  if (failure) return `${asked}, ${hop}. ${inWords(failure)}.${cache}`;
  return `${asked}, ${hop}.${cache}`;
}
