import { readFileSync } from 'node:fs';

/** The highest steal, from 0 to 1, at which measurements are considered valid. */
export const MAX_STEAL = 0.05;

const MAX_ATTEMPTS = 5;

/**
 * Starts measuring steal: the share of CPU time that a virtual machine needed but its hypervisor did not provide.
 * @returns a function that returns the steal since the start, from 0 to 1 (`st` in `top`), or 0 if the system does not
 * report it
 */
export function startStealMeter(): () => number {
  const before = readCpuTicks();
  return () => {
    const after = readCpuTicks();
    return (after.stolen - before.stolen) / (after.total - before.total || 1);
  };
}

/** The CPU time since the system started, in ticks: the first line of /proc/stat (man page proc_stat(5)). */
function readCpuTicks() {
  if (process.platform !== 'linux') return { total: 0, stolen: 0 };
  const [line = ''] = readFileSync('/proc/stat', 'utf8').split('\n');
  const ticks = line.split(/ +/).slice(1, 9).map(Number);
  return { total: ticks.reduce((sum, count) => sum + count, 0), stolen: ticks[7] ?? 0 };
}

/**
 * Runs `measure`, and runs it again if its result is not as expected while steal exceeds `MAX_STEAL`, at most
 * `MAX_ATTEMPTS` times in total.
 * @returns the result of the last attempt
 * @throws the error of `measure`, which is not repeated then
 */
export async function repeatOnSteal<Result>(
  measure: () => Promise<Result>,
  isExpected: (result: Result) => boolean,
): Promise<Result> {
  for (let attempt = 1; ; attempt++) {
    const readSteal = startStealMeter();
    const result = await measure();
    const steal = readSteal();
    if (isExpected(result) || steal <= MAX_STEAL || attempt === MAX_ATTEMPTS) return result;
    process.stdout.write(
      `Attempt ${attempt} failed with ${(steal * 100).toFixed(0)} % steal. Repeating it.\n`,
    );
  }
}
