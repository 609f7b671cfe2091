import { type RequestHandler, type Response, Router } from 'express';
import { z } from 'zod';
import { jsonBody, validateBody } from '../../chassis/http/json-body';
import { methodNotAllowed, Problem } from '../../chassis/http/problem';
import type { Logger } from '../../chassis/telemetry/logger';
import {
  DEFAULT_DELAY_MS,
  DEFAULT_STATUS,
  type FaultKind,
  faultFields,
  parseFault,
  X_FAULT_EXPECTED,
} from '../../contract/fault';

const switchSchema = z.strictObject({
  kind: faultFields.kind,
  rate: z
    .number('Expected a number from 0 to 1.')
    .min(0, 'Must be at least 0.')
    .max(1, 'Must be at most 1.')
    .default(1),
  delayMs: faultFields.delayMs.optional(),
  status: faultFields.status.default(DEFAULT_STATUS),
  seconds: z
    .number('Expected a number of seconds.')
    .gt(0, 'Must be greater than 0.')
    .max(600, 'Must be at most 600.')
    .default(60),
});

type SwitchConfig = z.output<typeof switchSchema>;

interface Fault {
  readonly kind: FaultKind;
  readonly delayMs?: number | undefined;
  readonly status?: number | undefined;
}

/**
 * Injects faults: for a while into a share of the requests (the switch), and into each request that asks for one with
 * `x-fault`. When a fault ends, the requests that it holds continue.
 */
export class FaultInjector {
  private active: SwitchConfig | undefined;
  private isClosed = false;
  private endsAtMs = 0;
  private timer: NodeJS.Timeout | undefined;
  private heldBySwitch = new HeldRequests();
  private readonly heldByHeader = new HeldRequests();

  constructor(private readonly log: Logger) {}

  /** @throws {Problem} 503 while the service is stopping */
  start(config: SwitchConfig) {
    if (this.isClosed) throw new Problem(503, 'stopping', { detail: 'The service is stopping.' });
    this.end();
    this.active = config;
    this.heldBySwitch = new HeldRequests();
    this.endsAtMs = performance.now() + config.seconds * 1000;
    this.timer = setTimeout(() => this.end(), config.seconds * 1000);
    this.log.warn({ fault: this.activeFault() }, 'fault started');
  }

  /** Ends the fault of the switch. */
  end() {
    clearTimeout(this.timer);
    if (this.active !== undefined) this.log.warn('fault ended');
    this.active = undefined;
    this.heldBySwitch.release();
  }

  /** Ends all faults and rejects new ones. */
  close() {
    this.isClosed = true;
    this.end();
    this.heldByHeader.release();
  }

  /** Returns the active fault of the switch with its remaining seconds, or `{}`. */
  activeFault() {
    if (this.active === undefined) return {};
    const { kind, rate, status } = this.active;
    const seconds = Math.ceil((this.endsAtMs - performance.now()) / 1000);
    if (kind === 'status') return { kind, rate, status, seconds };
    return kind === 'delay' || kind === 'drip'
      ? { kind, rate, delayMs: delayOf(this.active), seconds }
      : { kind, rate, seconds };
  }

  /** Applies the fault that a request asks for, otherwise that of the switch to the configured share of requests. */
  middleware(): RequestHandler {
    return (req, res, next) => {
      const { 'x-fault': header, 'x-attempt-count': attempt = '1' } = req.headers;
      if (header !== undefined && !this.isClosed) {
        const fault = parseFault(String(header));
        if (fault === undefined) throw new Problem(400, 'invalid_fault', { detail: X_FAULT_EXPECTED });
        if (fault.attempt === 1 && attempt !== '1') return next();
        return apply(
          { kind: fault.kind, delayMs: fault.ms, status: fault.code },
          this.heldByHeader,
          res,
          next,
        );
      }
      if (this.active === undefined || Math.random() >= this.active.rate) return next();
      apply(this.active, this.heldBySwitch, res, next);
    };
  }
}

/** The requests that a fault holds. */
class HeldRequests {
  isReleased = false;
  private readonly releases = new Set<() => void>();

  /** Calls `resume` after `delayMs`, or when the fault ends. */
  hold(res: Response, delayMs: number | undefined, resume: () => void) {
    const release = () => {
      cancel();
      res.off('close', cancel);
      resume();
    };
    const cancel = () => {
      this.releases.delete(release);
      clearTimeout(timer);
    };
    const timer = delayMs === undefined ? undefined : setTimeout(release, delayMs);
    this.releases.add(release);
    res.once('close', cancel);
  }

  release() {
    this.isReleased = true;
    for (const release of [...this.releases]) release();
  }
}

function apply(fault: Fault, held: HeldRequests, res: Response, next: () => void) {
  switch (fault.kind) {
    case 'delay':
      return held.hold(res, delayOf(fault), next);
    case 'hang':
      return held.hold(res, undefined, next);
    case 'status':
      return void res.status(fault.status ?? DEFAULT_STATUS).end();
    case 'reset':
      return void res.socket?.resetAndDestroy();
    case 'truncate':
      interceptEnd(res, (body) => truncate(res, body));
      return next();
    case 'drip':
      interceptEnd(res, (body, end) => drip(res, body, delayOf(fault), held, end));
      return next();
  }
}

function truncate(res: Response, body: Buffer) {
  const { record } = res.locals;
  record.recordFailure('injected_fault', new Error('truncated by fault injection'));
  res.write(body.subarray(0, body.length / 2), () => record.cutOff());
}

function drip(res: Response, rest: Buffer, delayMs: number, held: HeldRequests, end: (rest: Buffer) => void) {
  if (rest.length === 0 || held.isReleased) return end(rest);
  res.write(rest.subarray(0, 1));
  held.hold(res, delayMs, () => drip(res, rest.subarray(1), delayMs, held, end));
}

function delayOf({ kind, delayMs }: Fault) {
  return delayMs ?? DEFAULT_DELAY_MS[kind === 'drip' ? 'drip' : 'delay'];
}

// The handler responds as usual; `send` decides how its final chunk is sent.
function interceptEnd(res: Response, send: (body: Buffer, end: (rest: Buffer) => void) => void) {
  const end = res.end.bind(res);
  res.end = ((chunk: string | Buffer = '') => {
    const body = Buffer.from(chunk);
    // Without a body, there is nothing to truncate or drip.
    if (body.length === 0 || res.req.method === 'HEAD') return end(body);
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
      injector.start(validateBody(switchSchema, req.body));
      res.json(injector.activeFault());
    })
    .delete((_req, res) => {
      injector.end();
      res.status(204).end();
    })
    .all(methodNotAllowed('GET', 'HEAD', 'PUT', 'DELETE'));
  return routes;
}
