import { type Item, parseItem, Token } from 'structured-headers';
import { z } from 'zod';

const delayMs = z
  .int('Expected a whole number of milliseconds.')
  .min(1, 'Must be at least 1.')
  .max(600_000, 'Must be at most 600000.');
const status = z
  .int('Expected a final status code.')
  .min(200, 'Must be at least 200.')
  .max(599, 'Must be at most 599.');

/** The fields that describe a fault. */
export const faultFields = {
  kind: z.enum(['delay', 'status', 'reset', 'truncate', 'drip', 'hang'], {
    error: 'Expected one of delay, status, reset, truncate, drip, hang.',
  }),
  delayMs,
  status,
};

export type FaultKind = z.output<typeof faultFields.kind>;

export const DEFAULT_STATUS = 503;
export const DEFAULT_DELAY_MS = { delay: 1000, drip: 100 } as const;

/** What `x-fault` must be, for the `detail` of a problem document. */
export const X_FAULT_EXPECTED =
  'x-fault: expected one fault: delay;ms=800 (ms from 1 to 600000), drip;ms=50 (ms from 1 to 600000), ' +
  'status;code=503 (code from 200 to 599), reset, truncate or hang, optionally with the parameter attempt=1.';

const attempt = z.literal(1).optional();
const PARAMETERS = {
  delay: z.strictObject({ ms: delayMs.default(DEFAULT_DELAY_MS.delay), attempt }),
  drip: z.strictObject({ ms: delayMs.default(DEFAULT_DELAY_MS.drip), attempt }),
  status: z.strictObject({ code: status.default(DEFAULT_STATUS), attempt }),
  reset: z.strictObject({ attempt }),
  truncate: z.strictObject({ attempt }),
  hang: z.strictObject({ attempt }),
};

/** The fault that `x-fault` requests. */
export interface RequestedFault {
  kind: FaultKind;
  /** The time before the response or, with `drip`, between two bytes. */
  ms?: number;
  /** The status of the response, with `status`. */
  code?: number;
  /** Present if only the first attempt is affected. */
  attempt?: 1 | undefined;
}

/** Parses `x-fault`, a structured field item (RFC 9651). Returns undefined if the value is invalid. */
export function parseFault(value: string): RequestedFault | undefined {
  const [name, parameters] = parse(value) ?? [];
  // The parser does not distinguish 1.0 from 1, but all parameters must be integers.
  if (!(name instanceof Token) || parameters === undefined || value.includes('.')) return undefined;
  const { data: kind } = faultFields.kind.safeParse(name.toString());
  if (kind === undefined) return undefined;
  const { data } = PARAMETERS[kind].safeParse(Object.fromEntries(parameters));
  return data && { kind, ...data };
}

function parse(value: string): Item | undefined {
  try {
    return parseItem(value);
  } catch {
    return undefined;
  }
}
