import { readFileSync } from 'node:fs';

/** A measurement with more steal than this, from 0 to 1, is repeated. */
export const MAX_STEAL = 0.05;

/**
 * Starts measuring steal (`st` in `top`): the time in which the hypervisor did not run a virtual CPU that was ready to
 * run, as a share of the time of all virtual CPUs.
 * @returns a function that returns the steal since the start, from 0 to 1, or `undefined` if this system does not
 * report it
 */
export function startStealMeter() {
  const before = readCpuTicks();
  return () => {
    const after = readCpuTicks();
    if (before === undefined || after === undefined) return undefined;
    return (after.stolen - before.stolen) / (after.total - before.total || 1);
  };
}

/** The CPU time since the system started, in ticks: the first line of /proc/stat (man page proc_stat(5)), on Linux. */
function readCpuTicks() {
  if (process.platform !== 'linux') return undefined;
  const [line = ''] = readFileSync('/proc/stat', 'utf8').split('\n');
  const ticks = line.split(/ +/).slice(1, 9).map(Number);
  return { total: ticks.reduce((sum, count) => sum + count, 0), stolen: ticks[7] ?? 0 };
}
