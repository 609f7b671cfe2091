import { parseArgs } from 'node:util';
import { findServices, TourError } from './services.mts';
import { stepsFor } from './steps.mts';
import { isMuted, mute, pause, print } from './terminal.mts';
import { shell, showStep, Tour } from './tour.mts';

// A guided walk through the services: `npm run tour`. It runs the commands that it shows, and checks what it says.
const USAGE = `Usage: npm run tour -- [options]
  --yes              do not pause between the steps
  --step NUMBER      show only this step
  --start            start two services, even if others are running
  --url URL          use the running api at URL (started with FAULTS=on)
  --admin-url URL    its admin port, http://127.0.0.1:9090 by default
  --log FILE         the log of both running services, onehop.log by default`;

function readOptions() {
  const flag = { type: 'boolean' } as const;
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      options: { yes: flag, start: flag, help: flag, step: text, url: text, 'admin-url': text, log: text },
    }).values;
  } catch (error) {
    throw new TourError(`${(error as Error).message}\n${USAGE}`);
  }
}

async function main() {
  const options = readOptions();
  if (options.help) return print(USAGE);
  if ((await shell('curl --version')) === '') throw new TourError('The tour needs curl.');
  const services = await findServices(options);
  const stop = async (code: number) => {
    if (isMuted()) return;
    print('\nStopped.');
    mute();
    await services.restore();
    process.exit(code);
  };
  // The reader of the output has gone away, for example `head`.
  process.stdout.on('error', () => void stop(1));
  process.once('SIGINT', () => void stop(130));
  process.once('SIGTERM', () => void stop(143));
  try {
    await showSteps(new Tour(services), options);
  } finally {
    await services.restore();
  }
}

async function showSteps(tour: Tour, { step, yes }: { step?: string; yes?: boolean }) {
  const { services } = tour;
  const steps = stepsFor(services);
  print(`The tour uses ${services.description}. Each step runs the commands that it shows.`);
  if (step !== undefined && steps[Number(step) - 1] === undefined)
    throw new TourError(`--step must be a number from 1 to ${steps.length}.`);
  for (const [i, candidate] of steps.entries()) {
    if (step !== undefined && Number(step) !== i + 1) continue;
    if (!yes) await pause();
    await showStep(tour, candidate, i + 1, steps.length);
  }
  print();
  if (tour.failures === 0) return print('Everything that the tour claimed was shown.', { style: 'green' });
  print(`${tour.failures} of the tour's claims were not shown. Look for NOT SHOWN above.`, { style: 'red' });
  process.exitCode = 1;
}

main().catch((error: Error) => {
  process.stderr.write(`${error instanceof TourError ? error.message : error.stack}\n`);
  process.exitCode = 1;
});
