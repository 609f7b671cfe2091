import { readFileSync } from 'node:fs';

/** Durations that are measured while more than this share of the CPU time is stolen say little about the program. */
export const MAX_STEAL = 0.05;

const MAX_TRIES = 5;

/**
 * Starts to measure steal: CPU time that a virtual machine could have used, but that its hypervisor gave to others.
 * @returns a function that returns the share of steal in the CPU time since then, from 0 to 1, as `st` in `top`; 0 if the
 * system does not report it
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
 * Runs `check`. If it rejects and steal exceeded 5 % meanwhile, runs it again, up to five times in total.
 * @throws the error of the last run
 */
export async function retryIfStolen(check: () => Promise<void>): Promise<void> {
  for (let tries = 1; ; tries++) {
    const steal = startStealMeter();
    try {
      return await check();
    } catch (error) {
      const share = steal();
      if (share <= MAX_STEAL || tries === MAX_TRIES) throw error;
      process.stdout.write(`repeated, because ${(share * 100).toFixed(0)} % of the CPU time was stolen\n`);
    }
  }
}
