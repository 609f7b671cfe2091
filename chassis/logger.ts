import pino, { type DestinationStream, type Logger, type LoggerOptions } from 'pino';

export type { Logger } from 'pino';

const MOST_HELD = 16_384;
// Of UTF-8, for a unit of a string.
const MOST_BYTES_PER_UNIT = 3;
const LONGEST_HELD_MS = 100;
// One write at a time is under way, and a turn of the event loop under overload makes a megabyte of log.
const MOST_PER_WRITE = 1024 * 1024;
// What reads the log may stall; the service goes on without it.
const MOST_WAITING = 16 * 1024 * 1024;

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
    timestamp: isoTime(),
    formatters: { level: (label) => ({ level: label }) },
  };
  if (logFormat === 'pretty') return pino(options, prettyOutput());
  const log = pino(
    options,
    bufferedOutput((lines) => log.warn({ lines }, 'log lines lost: they are read too slowly')),
  );
  return log;
}

// A system call for each line costs a tenth of the throughput, and pino's own buffer measures all that it
// holds again with each line, so it is handed whole pieces. What is left is written out when the process
// exits; a SIGKILL loses what is held and what waits.
function bufferedOutput(onLost: (lines: number) => void): DestinationStream {
  const held = Buffer.allocUnsafe(MOST_HELD);
  let bytes = 0;
  const handOver = () => {
    if (bytes === 0) return;
    // A copy as long as its lines, so that what waits is bounded by their length.
    write(Buffer.from(held.subarray(0, bytes)));
    bytes = 0;
  };
  let lost = 0;
  const tellLost = () => {
    if (lost > 0) onLost(lost);
    lost = 0;
  };
  // Before pino's own handler, which empties the output.
  process.once('exit', () => {
    // The last lines tell why: nothing is refused any more, nor left to a thread that may end before it wrote.
    Object.assign(output, { maxLength: 0, sync: true });
    tellLost();
    handOver();
  });
  const output = pino.destination({
    sync: false,
    contentMode: 'buffer',
    maxWrite: MOST_PER_WRITE,
    maxLength: MOST_WAITING,
  });
  output.on('drop', (piece) => {
    lost += String(piece).split('\n').length - 1;
  });
  output.on('drain', tellLost);
  // Its types know of text only.
  const write = (piece: Buffer) => output.write(piece as unknown as string);
  setInterval(handOver, LONGEST_HELD_MS).unref();
  return {
    write(line) {
      const most = line.length * MOST_BYTES_PER_UNIT;
      if (most > MOST_HELD - bytes) handOver();
      if (most > MOST_HELD) write(Buffer.from(line));
      else bytes += held.write(line, bytes);
    },
  };
}

function prettyOutput() {
  const pretty: typeof import('pino-pretty') = require('pino-pretty');
  return pretty({ sync: true, singleLine: true, ignore: 'pid,hostname' });
}

// The date is made once a second, and not for each line.
function isoTime() {
  let second = 0;
  let prefix = '';
  return () => {
    const now = Date.now();
    const ms = now % 1000;
    if (now - ms !== second) {
      second = now - ms;
      prefix = `,"time":"${new Date(second).toISOString().slice(0, -4)}`;
    }
    return `${prefix}${String(ms).padStart(3, '0')}Z"`;
  };
}
