import { Writable } from 'node:stream';
import pino from 'pino';
import { NextHop, type NextHopOptions } from '../chassis/next-hop/client';
import { Traffic } from '../chassis/traffic';
import { createApp } from '../services/api/app';

export interface LogLine {
  level: number;
  msg: string;
  [field: string]: unknown;
}

/** A logger whose lines a test can read. */
export function logToArray() {
  const lines: LogLine[] = [];
  const stream = new Writable({
    write(chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  const log = pino({ level: 'debug' }, stream);
  return { log, lines, completed: () => lines.filter((line) => line.msg === 'request completed') };
}

/** api as it is built for production, over the given next hop. */
export function apiOver(
  origin: string,
  options: Partial<NextHopOptions> = {},
  maxInFlight = 1024,
  externalOptions: Partial<NextHopOptions> = {},
) {
  const { log, lines, completed } = logToArray();
  const api2 = new NextHop({ name: 'api2', origin, timeoutMs: 400, connections: 64, log, ...options });
  const external = new NextHop({
    name: 'external',
    origin,
    timeoutMs: 400,
    connections: 4,
    passesOn: false,
    collapse: true,
    log,
    ...externalOptions,
  });
  const traffic = new Traffic({ log });
  const app = createApp({ traffic, log, api2, external, externalPath: '/data.json', maxInFlight });
  const completedByNow = () => {
    traffic.logEnded();
    return completed();
  };
  return { app, api2, external, lines, completed: completedByNow };
}
