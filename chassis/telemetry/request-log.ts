import type { Logger } from './logger';

/** The log fields of requests that share a route and a result. */
export interface RequestKind {
  readonly method: string;
  readonly route: string;
  readonly status: number;
  readonly nextHop: string | undefined;
  readonly nextHopStatus: number | undefined;
}

interface Line {
  readonly log: Logger;
  readonly isError: boolean;
  readonly fields: object;
}

const MESSAGE = 'request completed';
// A service has far fewer kinds, unless clients request faults with many different statuses.
const MAX_LOGGERS = 1000;

/** Writes one log line for each completed request. */
export class RequestLog {
  private readonly lines: Line[] = [];
  // pino formats the fields of a child logger once, not for each line.
  private readonly loggers = new Map<string, Logger>();

  constructor(private readonly log: Logger) {}

  // Lines of one turn of the event loop are written together, so that the logger's code stays in the CPU cache
  // (docs/decisions/0008-hot-path.md).
  write(kind: RequestKind, fields: object, isError: boolean) {
    if (this.lines.push({ log: this.loggerOf(kind), isError, fields }) === 1)
      setImmediate(() => this.flush());
  }

  /** Must be called before the process exits. */
  flush() {
    for (const { log, isError, fields } of this.lines.splice(0)) {
      if (isError) log.error(fields, MESSAGE);
      else log.info(fields, MESSAGE);
    }
  }

  private loggerOf(kind: RequestKind): Logger {
    const key = `${kind.method} ${kind.route} ${kind.status} ${kind.nextHop} ${kind.nextHopStatus}`;
    const known = this.loggers.get(key);
    if (known !== undefined) return known;
    if (this.loggers.size === MAX_LOGGERS) this.loggers.clear();
    const logger = this.log.child(kind);
    this.loggers.set(key, logger);
    return logger;
  }
}
