import { type RequestHandler, type Response, Router } from 'express';
import { z } from 'zod';
import { jsonBody, validBody } from '../../chassis/json-body';
import type { Logger } from '../../chassis/logger';
import { methodNotAllowed, Problem } from '../../chassis/problem';

const DELAY_MS = { delay: 1000, drip: 100 } as const;

const faultSchema = z.strictObject({
  kind: z.enum(['delay', 'status', 'reset', 'truncate', 'drip', 'hang'], {
    error: 'Expected one of delay, status, reset, truncate, drip, hang.',
  }),
  rate: z.number('Expected a number from 0 to 1.').min(0, 'At least 0.').max(1, 'At most 1.').default(1),
  delayMs: z
    .int('Expected a whole number of milliseconds.')
    .min(1, 'At least 1.')
    .max(600_000, 'At most 600000.')
    .optional(),
  status: z.int('Expected a final status.').min(200, 'At least 200.').max(599, 'At most 599.').default(503),
  seconds: z
    .number('Expected a number of seconds.')
    .gt(0, 'More than 0.')
    .max(600, 'At most 600.')
    .default(60),
});

type FaultRequest = z.output<typeof faultSchema>;

/** A fault on purpose: whatever it holds up goes on when it ends. */
export class Fault {
  private request: FaultRequest | undefined;
  private isClosed = false;
  private endsAtMs = 0;
  private timer: NodeJS.Timeout | undefined;
  private readonly heldUp = new Set<() => void>();

  constructor(private readonly log: Logger) {}

  /** @throws {Problem} 503 while the service stops */
  begin(request: FaultRequest) {
    if (this.isClosed) throw new Problem(503, 'stopping', { detail: 'The service is stopping.' });
    this.end();
    this.request = request;
    this.endsAtMs = performance.now() + request.seconds * 1000;
    this.timer = setTimeout(() => this.end(), request.seconds * 1000);
    this.log.warn({ fault: this.asItStands() }, 'fault began');
  }

  end() {
    clearTimeout(this.timer);
    if (this.request !== undefined) this.log.warn('fault ended');
    this.request = undefined;
    for (const goOn of [...this.heldUp]) goOn();
  }

  /** Ends the fault, and takes no other. */
  close() {
    this.isClosed = true;
    this.end();
  }

  /** The fault with the seconds that are left, or `{}`. */
  asItStands() {
    if (this.request === undefined) return {};
    const { kind, rate, status } = this.request;
    const seconds = Math.ceil((this.endsAtMs - performance.now()) / 1000);
    if (kind === 'status') return { kind, rate, status, seconds };
    return kind === 'delay' || kind === 'drip'
      ? { kind, rate, delayMs: delayOf(this.request), seconds }
      : { kind, rate, seconds };
  }

  /** Lets the fault have its share of the requests. */
  middleware(): RequestHandler {
    return (_req, res, next) => {
      if (this.request === undefined || Math.random() >= this.request.rate) return next();
      this.apply(this.request, res, next);
    };
  }

  private apply(request: FaultRequest, res: Response, next: () => void) {
    switch (request.kind) {
      case 'delay':
        return this.holdUp(res, delayOf(request), next);
      case 'hang':
        return this.holdUp(res, undefined, next);
      case 'status':
        return void res.status(request.status).end();
      case 'reset':
        return void res.socket?.resetAndDestroy();
      case 'truncate':
        takeOverEnd(res, (body) => res.write(body.subarray(0, body.length / 2), () => res.destroy()));
        return next();
      case 'drip':
        takeOverEnd(res, (body, end) => this.drip(res, body, delayOf(request), end));
        return next();
    }
  }

  private holdUp(res: Response, delayMs: number | undefined, goOn: () => void) {
    const go = () => {
      this.heldUp.delete(go);
      clearTimeout(timer);
      res.off('close', leave);
      goOn();
    };
    const leave = () => {
      this.heldUp.delete(go);
      clearTimeout(timer);
    };
    const timer = delayMs === undefined ? undefined : setTimeout(go, delayMs);
    this.heldUp.add(go);
    res.once('close', leave);
  }

  private drip(res: Response, rest: Buffer, delayMs: number, end: (rest: Buffer) => void) {
    if (rest.length === 0 || this.request?.kind !== 'drip') return end(rest);
    res.write(rest.subarray(0, 1));
    this.holdUp(res, delayMs, () => this.drip(res, rest.subarray(1), delayMs, end));
  }
}

function delayOf({ kind, delayMs }: FaultRequest) {
  return delayMs ?? DELAY_MS[kind === 'drip' ? 'drip' : 'delay'];
}

// The handler behind it answers as ever; what it ends with is sent in another way.
function takeOverEnd(res: Response, send: (body: Buffer, end: (rest: Buffer) => void) => void) {
  const end = res.end.bind(res);
  res.end = ((chunk: string | Buffer = '') => {
    const body = Buffer.from(chunk);
    if (!res.hasHeader('content-length')) res.setHeader('content-length', body.length);
    res.flushHeaders();
    send(body, end);
    return res;
  }) as Response['end'];
}

/** The routes of the fault switch, for the admin port. */
export function faultRoutes(fault: Fault): Router {
  const routes = Router();
  routes
    .route('/fault')
    .get((_req, res) => void res.json(fault.asItStands()))
    .put(jsonBody(), (req, res) => {
      fault.begin(validBody(faultSchema, req.body));
      res.json(fault.asItStands());
    })
    .delete((_req, res) => {
      fault.end();
      res.status(204).end();
    })
    .all(methodNotAllowed('GET', 'HEAD', 'PUT', 'DELETE'));
  return routes;
}
