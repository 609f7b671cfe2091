import { type RequestHandler, type Response, Router } from 'express';
import { z } from 'zod';
import { jsonBody, validateBody } from '../../chassis/http/json-body';
import { methodNotAllowed, Problem } from '../../chassis/http/problem';
import type { Logger } from '../../chassis/telemetry/logger';

const DELAY_MS = { delay: 1000, drip: 100 } as const;

const faultSchema = z.strictObject({
  kind: z.enum(['delay', 'status', 'reset', 'truncate', 'drip', 'hang'], {
    error: 'Expected one of delay, status, reset, truncate, drip, hang.',
  }),
  rate: z
    .number('Expected a number from 0 to 1.')
    .min(0, 'Must be at least 0.')
    .max(1, 'Must be at most 1.')
    .default(1),
  delayMs: z
    .int('Expected a whole number of milliseconds.')
    .min(1, 'Must be at least 1.')
    .max(600_000, 'Must be at most 600000.')
    .optional(),
  status: z
    .int('Expected a final status code.')
    .min(200, 'Must be at least 200.')
    .max(599, 'Must be at most 599.')
    .default(503),
  seconds: z
    .number('Expected a number of seconds.')
    .gt(0, 'Must be greater than 0.')
    .max(600, 'Must be at most 600.')
    .default(60),
});

type FaultConfig = z.output<typeof faultSchema>;

/** Injects a fault into requests. When the fault ends, the requests that it holds continue. */
export class FaultInjector {
  private active: FaultConfig | undefined;
  private isClosed = false;
  private endsAtMs = 0;
  private timer: NodeJS.Timeout | undefined;
  private readonly heldRequests = new Set<() => void>();

  constructor(private readonly log: Logger) {}

  /** @throws {Problem} 503 while the service is stopping */
  start(config: FaultConfig) {
    if (this.isClosed) throw new Problem(503, 'stopping', { detail: 'The service is stopping.' });
    this.end();
    this.active = config;
    this.endsAtMs = performance.now() + config.seconds * 1000;
    this.timer = setTimeout(() => this.end(), config.seconds * 1000);
    this.log.warn({ fault: this.activeFault() }, 'fault started');
  }

  end() {
    clearTimeout(this.timer);
    if (this.active !== undefined) this.log.warn('fault ended');
    this.active = undefined;
    for (const release of [...this.heldRequests]) release();
  }

  /** Ends the fault and rejects new ones. */
  close() {
    this.isClosed = true;
    this.end();
  }

  /** Returns the active fault with its remaining seconds, or `{}`. */
  activeFault() {
    if (this.active === undefined) return {};
    const { kind, rate, status } = this.active;
    const seconds = Math.ceil((this.endsAtMs - performance.now()) / 1000);
    if (kind === 'status') return { kind, rate, status, seconds };
    return kind === 'delay' || kind === 'drip'
      ? { kind, rate, delayMs: delayOf(this.active), seconds }
      : { kind, rate, seconds };
  }

  /** Applies the fault to the configured share of requests. */
  middleware(): RequestHandler {
    return (_req, res, next) => {
      if (this.active === undefined || Math.random() >= this.active.rate) return next();
      this.apply(this.active, res, next);
    };
  }

  private apply(config: FaultConfig, res: Response, next: () => void) {
    switch (config.kind) {
      case 'delay':
        return this.hold(res, delayOf(config), next);
      case 'hang':
        return this.hold(res, undefined, next);
      case 'status':
        return void res.status(config.status).end();
      case 'reset':
        return void res.socket?.resetAndDestroy();
      case 'truncate':
        interceptEnd(res, (body) => res.write(body.subarray(0, body.length / 2), () => res.destroy()));
        return next();
      case 'drip':
        interceptEnd(res, (body, end) => this.drip(res, body, delayOf(config), end));
        return next();
    }
  }

  private hold(res: Response, delayMs: number | undefined, resume: () => void) {
    const release = () => {
      this.heldRequests.delete(release);
      clearTimeout(timer);
      res.off('close', cancel);
      resume();
    };
    const cancel = () => {
      this.heldRequests.delete(release);
      clearTimeout(timer);
    };
    const timer = delayMs === undefined ? undefined : setTimeout(release, delayMs);
    this.heldRequests.add(release);
    res.once('close', cancel);
  }

  private drip(res: Response, rest: Buffer, delayMs: number, end: (rest: Buffer) => void) {
    if (rest.length === 0 || this.active?.kind !== 'drip') return end(rest);
    res.write(rest.subarray(0, 1));
    this.hold(res, delayMs, () => this.drip(res, rest.subarray(1), delayMs, end));
  }
}

function delayOf({ kind, delayMs }: FaultConfig) {
  return delayMs ?? DELAY_MS[kind === 'drip' ? 'drip' : 'delay'];
}

// The handler responds as usual; `send` decides how its final chunk is sent.
function interceptEnd(res: Response, send: (body: Buffer, end: (rest: Buffer) => void) => void) {
  const end = res.end.bind(res);
  res.end = ((chunk: string | Buffer = '') => {
    const body = Buffer.from(chunk);
    if (!res.hasHeader('content-length')) res.setHeader('content-length', body.length);
    res.flushHeaders();
    send(body, end);
    return res;
  }) as Response['end'];
}

/** The routes of `/fault`, for the admin port. */
export function faultRoutes(injector: FaultInjector): Router {
  const routes = Router();
  routes
    .route('/fault')
    .get((_req, res) => void res.json(injector.activeFault()))
    .put(jsonBody(), (req, res) => {
      injector.start(validateBody(faultSchema, req.body));
      res.json(injector.activeFault());
    })
    .delete((_req, res) => {
      injector.end();
      res.status(204).end();
    })
    .all(methodNotAllowed('GET', 'HEAD', 'PUT', 'DELETE'));
  return routes;
}
