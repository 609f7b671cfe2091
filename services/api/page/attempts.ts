/** One attempt of api to get a response from a next hop. */
export interface Attempt {
  kind: 'first' | 'retry' | 'hedge';
  /** Milliseconds after the first attempt. */
  startMs: number;
  durationMs: number;
  /** `ok` for any response, `cancelled`, or an error type of RFC 9209. */
  outcome: string;
  /** The number of the replica; undefined if api does not report it. */
  replica: number | undefined;
  /** Whether the response of this attempt is the one that api used. */
  isWinner: boolean;
}

// With these errors, api fails before it sends an attempt.
const ERRORS_WITHOUT_ATTEMPT: readonly unknown[] = ['destination_unavailable', 'dns_error', 'dns_timeout'];

/** Reads the attempts from `Server-Timing` and `x-attempts`. For a single one, the outcome is `error` or `ok`. */
export function parseAttempts(headers: Headers, error: string | undefined): Attempt[] {
  const timings = parseServerTiming(headers).filter(({ name }) => name !== 'total');
  if (timings.length === 1 && ERRORS_WITHOUT_ATTEMPT.includes(error)) return [];
  const starts = [
    ...(headers.get('x-attempts') ?? '').matchAll(/(first|retry|hedge);start=([\d.]+)(?:;replica=(\d+))?/g),
  ];
  const attempts = timings.map(({ durationMs, outcome = error ?? 'ok' }, index): Attempt => {
    const [, kind = 'first', startMs = 0, replica] = starts[index] ?? [];
    return {
      kind: kind as Attempt['kind'],
      startMs: Number(startMs),
      durationMs,
      outcome,
      replica: replica === undefined ? undefined : Number(replica),
      isWinner: false,
    };
  });
  // api discards a 502, 503 or 504 if it retries, so the response that it used is the last one.
  const winner = error === undefined && attempts.findLast(({ outcome }) => outcome === 'ok');
  if (winner) winner.isWinner = true;
  return attempts;
}

/** The time that api took for the whole request; undefined without a response from api. */
export function parseTotalMs(headers: Headers): number | undefined {
  return parseServerTiming(headers).find(({ name }) => name === 'total')?.durationMs;
}

/** The time from the start of the first attempt to the end of the last; undefined if there was none. */
export function hopMsOf(attempts: readonly Attempt[]): number | undefined {
  return attempts.length === 0 ? undefined : Math.max(...attempts.map(endMsOf));
}

function endMsOf({ startMs, durationMs }: Attempt) {
  return startMs + durationMs;
}

function parseServerTiming(headers: Headers) {
  const metrics = (headers.get('server-timing') ?? '').matchAll(/([\w.-]+);dur=([\d.]+)(?:;desc="(\w+)")?/g);
  return [...metrics].map(([, name, ms, outcome]) => ({ name, durationMs: Number(ms), outcome }));
}

/** The list of attempts: each one in words, and as a bar on a time axis that all of them share. */
export class AttemptList {
  constructor(
    private readonly list: HTMLElement,
    private readonly axisEnd: HTMLElement,
  ) {}

  /** @param failureType why the response that api used is not a success */
  show(attempts: readonly Attempt[], failureType: string | undefined) {
    const totalMs = hopMsOf(attempts) ?? 0;
    this.list.replaceChildren(
      ...attempts.map((attempt, index) => createItem(attempt, index + 1, totalMs, failureType)),
    );
    this.axisEnd.textContent = `${formatMs(totalMs)} ms`;
    (this.list.parentElement as HTMLElement).hidden = attempts.length === 0;
  }
}

function createItem(attempt: Attempt, number: number, totalMs: number, failureType: string | undefined) {
  const { kind, startMs, durationMs, outcome, replica } = attempt;
  const item = document.createElement('li');
  const note = noteOf(attempt, failureType);
  item.dataset.state =
    outcome === 'ok' && note === '' ? 'ok' : outcome === 'cancelled' ? 'cancelled' : 'failed';
  const name =
    kind === 'first' ? `Attempt ${number}` : `Attempt ${number}, ${kind} at ${formatMs(startMs)} ms`;
  const result = createElement('strong', `${outcome} · ${formatMs(durationMs)} ms${note}`);
  const bar = createElement('span', '');
  bar.className = 'bar';
  // 0.375rem is the minimum width of a bar.
  bar.style.marginInlineStart = `min(${(100 * startMs) / totalMs}%, 100% - 0.375rem)`;
  bar.style.width = `${(100 * durationMs) / totalMs}%`;
  item.append(`${name}${replica === undefined ? '' : `, replica ${replica}`}: `, result, bar);
  return item;
}

// The outcome `ok` only says that there was a response.
function noteOf({ outcome, isWinner }: Attempt, failureType: string | undefined) {
  if (outcome !== 'ok' || (isWinner && failureType === undefined)) return '';
  if (!isWinner) return ', error status';
  const [, status] = /^received (\d+)$/.exec(failureType ?? '') ?? [];
  return status === undefined ? ', not usable' : `, status ${status}`;
}

function createElement(name: string, text: string) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

/** Formats milliseconds: one decimal place below 10, none above. */
export function formatMs(ms: number) {
  return ms < 10 ? ms.toFixed(1) : ms.toFixed(0);
}
