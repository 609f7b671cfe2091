import { setTimeout as sleep } from 'node:timers/promises';
import { median } from './processes.js';

// Gives the program time to close the connections of the load.
const PAUSE_MS = 200;

/**
 * Paired measurements. The speed of a machine varies from second to second, so two programs are compared only by
 * measurements taken one right after the other.
 */
export class Comparison {
  // Each pair has the results of its two programs by name.
  #pairs = [];

  /** Measures both programs with `measure(name)`, in the reverse order every other time. */
  async measure(first, second, measure, pauseMs = PAUSE_MS) {
    const names = this.#pairsOf(first, second).length % 2 === 0 ? [first, second] : [second, first];
    const pair = {};
    for (const name of names) {
      pair[name] = await measure(name);
      await sleep(pauseMs);
    }
    this.#pairs.push(pair);
  }

  results(name) {
    return this.#pairs.filter((pair) => name in pair).map((pair) => pair[name]);
  }

  /** @param figure the name of a figure of the results */
  median(name, figure = 'perSecond') {
    return median(this.results(name).map((result) => result[figure]));
  }

  /** For each pair, the ratio of the requests per second. */
  ratios(numerator, denominator) {
    return this.#pairsOf(numerator, denominator).map(
      (pair) => pair[numerator].perSecond / pair[denominator].perSecond,
    );
  }

  /** For each pair, the difference of a figure. */
  differences(minuend, subtrahend, figure) {
    return this.#pairsOf(minuend, subtrahend).map((pair) => pair[minuend][figure] - pair[subtrahend][figure]);
  }

  #pairsOf(one, other) {
    return this.#pairs.filter((pair) => one in pair && other in pair);
  }
}
