import pino, { type DestinationStream, type Logger, type LoggerOptions } from 'pino';
import { SonicBoom } from 'sonic-boom';

export type { Logger } from 'pino';

const BUFFER_BYTES = 16_384;
// UTF-8 needs at most three bytes for a UTF-16 code unit.
const MAX_BYTES_PER_CODE_UNIT = 3;
const FLUSH_INTERVAL_MS = 100;
// Only one write is pending at a time, and one turn of the event loop under overload logs about a megabyte.
const MAX_WRITE_BYTES = 1024 * 1024;
// If the reader of the log stalls, lines beyond this are dropped.
const MAX_QUEUED_BYTES = 16 * 1024 * 1024;

/**
 * Creates a logger that writes JSON lines to standard output. `pretty` formats them for a terminal, and needs a
 * development dependency.
 * @param service the `service` field of every line
 */
export function createLogger(
  service: string,
  { logLevel, logFormat }: { logLevel: string; logFormat: 'json' | 'pretty' },
): Logger {
  const options: LoggerOptions = {
    level: logLevel,
    base: { service },
    timestamp: isoTimestamp(),
    formatters: { level: (label) => ({ level: label }) },
  };
  if (logFormat === 'pretty') return pino(options, prettyOutput());
  const log = pino(
    options,
    bufferedOutput((lines) => log.warn({ lines }, 'dropped log lines: slow reader')),
  );
  return log;
}

// A system call per line costs a tenth of the throughput, and pino's own buffer measures its whole content again on
// each write, so it receives chunks of many lines. They are flushed when the process exits; a SIGKILL loses them.
function bufferedOutput(onDropped: (lines: number) => void): DestinationStream {
  const buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  let bytes = 0;
  const flush = () => {
    if (bytes === 0) return;
    // Copied, so that a queued chunk uses no more memory than its lines.
    write(Buffer.from(buffer.subarray(0, bytes)));
    bytes = 0;
  };
  let droppedLines = 0;
  const reportDropped = () => {
    if (droppedLines > 0) onDropped(droppedLines);
    droppedLines = 0;
  };
  // Not `pino.destination`: with pino's version of sonic-boom, the process never exits if the reader closes the log
  // during the last flush.
  const output = new SonicBoom({
    fd: process.stdout.fd,
    sync: false,
    contentMode: 'buffer',
    maxWrite: MAX_WRITE_BYTES,
    maxLength: MAX_QUEUED_BYTES,
  });
  let hasReader = true;
  output.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    hasReader = false;
  });
  process.once('exit', () => {
    // The last lines say why the process exits, so none are dropped. Until `flushSync`, they are only queued.
    Object.assign(output, { maxLength: 0, minLength: Number.POSITIVE_INFINITY });
    reportDropped();
    flush();
    try {
      if (hasReader) output.flushSync();
    } catch {
      // The log cannot be written: its reader has closed it, or the disk is full.
    }
  });
  output.on('drop', (chunk) => {
    droppedLines += String(chunk).split('\n').length - 1;
  });
  output.on('drain', reportDropped);
  const write = (chunk: Buffer) => {
    // sonic-boom's types accept only strings.
    if (hasReader) output.write(chunk as unknown as string);
  };
  setInterval(flush, FLUSH_INTERVAL_MS).unref();
  return {
    write(line) {
      const maxBytes = line.length * MAX_BYTES_PER_CODE_UNIT;
      if (maxBytes > BUFFER_BYTES - bytes) flush();
      if (maxBytes > BUFFER_BYTES) write(Buffer.from(line));
      else bytes += buffer.write(line, bytes);
    },
  };
}

function prettyOutput() {
  const pretty: typeof import('pino-pretty') = require('pino-pretty');
  return pretty({ sync: true, singleLine: true, ignore: 'pid,hostname' });
}

// The date is formatted once per second rather than for each line.
function isoTimestamp() {
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
