import { readFileSync } from 'node:fs';

/** The highest steal, from 0 to 1, at which measurements are considered valid. */
export const MAX_STEAL = 0.05;

/**
 * Starts measuring steal: the share of CPU time that a virtual machine needed but its hypervisor did not provide.
 * @returns a function that returns the steal since the start, from 0 to 1 (`st` in `top`), or 0 if the system does not
 * report it
 */
export function startStealMeter() {
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
  return { total: ticks.reduce((sum, count) => sum + count, 0), stolen: ticks[7] };
}
