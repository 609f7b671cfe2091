import pino, { type Logger, type LoggerOptions } from 'pino';

export type { Logger } from 'pino';

/**
 * A logger that writes a JSON line per entry to standard output; `pretty` makes them readable for a
 * person at a terminal, with a package that only development installs.
 * @param service stands in every line
 */
export function createLogger(
  service: string,
  { logLevel, logFormat }: { logLevel: string; logFormat: 'json' | 'pretty' },
): Logger {
  const options: LoggerOptions = {
    level: logLevel,
    base: { service },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
  };
  return pino(options, logFormat === 'pretty' ? prettyOutput() : bufferedOutput());
}

// A system call for each line costs a tenth of the throughput. pino writes out what is left when the
// process exits; only a SIGKILL loses lines, those of the last tenth of a second.
function bufferedOutput() {
  return pino.destination({ sync: false, minLength: 4096, periodicFlush: 100 });
}

function prettyOutput() {
  const pretty: typeof import('pino-pretty') = require('pino-pretty');
  return pretty({ sync: true, singleLine: true, ignore: 'pid,hostname' });
}
