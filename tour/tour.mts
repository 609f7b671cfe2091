import { exec } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { type LogLine, logLinesOf, type Services } from './services.mts';
import type { Step } from './steps.mts';
import { print, printCommand } from './terminal.mts';

const LOG_TIMEOUT_MS = 3000;
const MAX_LINES_PER_SERVICE = 3;

/** What a step does with the services. Every method prints what it does, and checks it. */
export class Tour {
  failures = 0;
  readonly services: Services;

  // Node runs this file by removing its types, so it has no parameter properties.
  constructor(services: Services) {
    this.services = services;
  }

  get url() {
    return this.services.url;
  }

  /** Runs a shell command, and checks its output. Resolves to the output. */
  async run(command: string, claims: Record<string, RegExp>): Promise<string> {
    printCommand(command);
    const output = await shell(command);
    print(output, { indent: '  ' });
    for (const [claim, pattern] of Object.entries(claims)) this.check(claim, pattern.test(output));
    return output;
  }

  /** Prints whether a claim holds. */
  check(claim: string, isTrue: boolean) {
    if (!isTrue) this.failures++;
    const [first, style] = isTrue ? (['ok: ', 'green'] as const) : (['NOT SHOWN: ', 'red'] as const);
    print(claim, { first, indent: '    ', style });
  }

  /** Prints the log lines of a request, and checks that there are as many of each service as expected, or more. */
  async showLog(requestId: string, expected: Readonly<Record<string, number>>) {
    print(`\nThe log lines with the request id ${requestId}:`);
    let lines: LogLine[] = [];
    const isComplete = () =>
      Object.entries(expected).every(([name, count]) => isEnough(ofService(lines, name).length, count));
    for (const deadline = Date.now() + LOG_TIMEOUT_MS; Date.now() < deadline; await sleep(100)) {
      lines = await logLinesOf(this.services, requestId);
      if (isComplete()) break;
    }
    for (const name of Object.keys(expected))
      for (const line of ofService(lines, name).slice(0, MAX_LINES_PER_SERVICE)) printLine(line);
    const counts = Object.entries(expected).map(([name, count]) => `${count || 'none'} of ${name}`);
    this.check(`log lines: ${counts.join(', ')}`, isComplete());
  }

  /** Prints and checks the current value of a metric of api. */
  async showMetric(sample: string, expected: number) {
    const value = sampleValue(await this.services.metrics(), sample);
    print(`${sample} ${value}`, { indent: '  ' });
    this.check(`the metric is ${expected}`, value === expected);
  }
}

/** Shows one step. */
export async function showStep(tour: Tour, step: Step, number: number, steps: number) {
  print(`\n${number}/${steps}  ${step.title}`, { style: 'cyan' });
  print(`${step.text}\n`);
  const before = await tour.services.metrics();
  const output = await step.act(tour);
  const requestId = /^x-request-id: (\S+)/im.exec(output)?.[1];
  if (requestId !== undefined) await tour.showLog(requestId, step.logLines);
  else tour.check('the response has an x-request-id', false);
  print('\nThe metrics of api:');
  const after = await tour.services.metrics();
  for (const [sample, change] of Object.entries(step.metrics)) {
    const [from, to] = [sampleValue(before, sample), sampleValue(after, sample)];
    print(sample.endsWith('}') ? sample : `${sample}…}`, { indent: '  ' });
    tour.check(`${from} → ${to}`, to - from >= change);
  }
}

/** Runs a command in a shell. Resolves to its standard output, even if the command fails. */
export function shell(command: string): Promise<string> {
  return new Promise((resolve) => {
    exec(command, { maxBuffer: 2 ** 26 }, (_error, stdout) => resolve(stdout.replaceAll('\r', '').trim()));
  });
}

// A hedge or a probe of an ejected replica adds a line to the log of api2. Zero lines means that it was not called.
const isEnough = (count: number, expected: number) => (expected === 0 ? count === 0 : count >= expected);

const ofService = (lines: readonly LogLine[], name: string) =>
  lines.filter(({ service }) => service === name);

/** Prints the fields that differ between requests. */
function printLine({ level, time, msg, err, service, requestId, ...fields }: LogLine) {
  const text = Object.entries(fields).map(([name, value]) => `${name}=${value}`);
  print(`${String(service).padEnd(5)} ${text.join(' ')}`, { first: '  ', indent: '        ' });
}

/** The value of a sample, or the sum of all that start with `sample`. */
function sampleValue(metrics: string, sample: string) {
  const lines = metrics.split('\n').filter((line) => line.startsWith(sample));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}
