import { Writable } from 'node:stream';
import { NextHop, type NextHopOptions } from 'next-hop';
import pino from 'pino';
import { nextHopObserver } from '../chassis/telemetry/next-hop-observer';
import type { RequestRecord } from '../chassis/telemetry/request-record';
import { Traffic } from '../chassis/telemetry/traffic';
import { createApp } from '../services/api/app';

export interface LogLine {
  level: number;
  msg: string;
  [field: string]: unknown;
}

/** A logger that keeps its lines for the test to inspect. */
export function captureLog() {
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

export type TestNextHopOptions = NextHopOptions<RequestRecord> & { collapse?: boolean; faults?: boolean };

/** Builds api as in production, with `origin` as api2 and as the external API. */
export function createTestApi(
  origin: string,
  options: TestNextHopOptions = {},
  maxInFlight = 1024,
  externalOptions: TestNextHopOptions = {},
) {
  const { log, lines, completed } = captureLog();
  const { collapse = false, faults = false, ...api2Options } = options;
  const api2 = new NextHop<RequestRecord>(origin, {
    name: 'api2',
    timeoutMs: 400,
    observer: nextHopObserver({ name: 'api2', log, showsReplicas: faults }),
    ...api2Options,
  });
  const external = new NextHop<RequestRecord>(origin, {
    name: 'external',
    timeoutMs: 400,
    connections: 4,
    observer: nextHopObserver({ name: 'external', log, isThirdParty: true }),
    ...externalOptions,
  });
  const traffic = new Traffic({ log });
  const settings = { collapse, faults, externalPath: '/data.json', maxInFlight };
  const app = createApp({ traffic, log, api2, external, ...settings });
  const flushCompleted = () => {
    traffic.flushLogLines();
    return completed();
  };
  return { app, api2, external, lines, completed: flushCompleted };
}
