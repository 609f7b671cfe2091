import { spawn } from 'node:child_process';
import { once } from 'node:events';

/** What `npm run tour` shows in one step. */
interface ShownStep {
  title: string;
  text: string;
  commands: number;
  /** The statuses of the responses, in order. */
  statuses: number[];
  /** How many log lines of each service there are. */
  logLines: { api: number; api2: number };
  /** By how much each metric has changed. */
  changes: number[];
}

/** Starts the tour. Its standard input is a pipe, so it is not a terminal. */
export function startTour(args: readonly string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, ['tour/main.mts', ...args], { env: { ...process.env, ...env } });
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name].on('data', (data: Buffer) => {
      texts[name] += data;
    });
  const ended = once(child, 'close').then(([code]) => ({ code: code as number | null, ...texts }));
  return { child, ended, stdout: () => texts.stdout };
}

/** The steps in the output of the tour. */
export function stepsIn(stdout: string): ShownStep[] {
  return stdout
    .split(/^(?=\d+\/\d+ {2})/m)
    .slice(1)
    .map((text) => {
      const count = (pattern: RegExp) => [...text.matchAll(pattern)].length;
      return {
        title: text.split('\n')[0] as string,
        text,
        commands: count(/^\$ /gm),
        statuses: [...text.matchAll(/^ {2}HTTP\/1\.1 (\d+)/gm)].map(([, status]) => Number(status)),
        logLines: { api: count(/^ {2}api {3}method=/gm), api2: count(/^ {2}api2 {2}method=/gm) },
        changes: [...text.matchAll(/^ok: (\d+) → (\d+)$/gm)].map(([, from, to]) => Number(to) - Number(from)),
      };
    });
}
