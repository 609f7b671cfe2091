import { z } from 'zod';

/** The environment that settings are read from: `process.env`, or a test's own object. */
export type Env = Readonly<Record<string, string | undefined>>;

/** Every wrong variable of an environment, one line each, with what was expected. */
export class SettingsError extends Error {
  constructor(faults: readonly string[]) {
    super(['Wrong settings:', ...faults].join('\n  '));
  }
}

// Timers of Node hold no more than a signed 32-bit number of milliseconds; past it they fire at once.
const LONGEST_TIMER_MS = 2 ** 31 - 1;

const text = (accepts: (value: string) => boolean, expected: string) => z.string().refine(accepts, expected);

/** A whole number written in decimal digits, within `min` and `max`. */
export function wholeNumber(min: number, max: number) {
  const accepts = (value: string) => /^\d{1,16}$/.test(value) && Number(value) >= min && Number(value) <= max;
  return text(accepts, `a whole number from ${min} to ${max}`).transform(Number);
}

/** A duration in milliseconds that a timer can hold. */
export const milliseconds = (min = 1) => wholeNumber(min, LONGEST_TIMER_MS);

/** A TCP port; 0 stands for any free one. */
export const port = () => wholeNumber(0, 65_535);

export const host = () => text((value) => /^[\w.:-]+$/.test(value), 'an IP address or a host name');

export const onOff = () =>
  text((value) => value === 'on' || value === 'off', '"on" or "off"').transform((value) => value === 'on');

/** A URL with one of the given schemes, normalised. */
export function url(
  schemes: readonly string[],
  expected: string,
  accepts: (url: URL) => boolean = () => true,
) {
  const parses = (value: string) => {
    const parsed = URL.parse(value);
    return parsed !== null && schemes.includes(parsed.protocol) && parsed.hostname !== '' && accepts(parsed);
  };
  return text(parses, expected);
}

/** The origin of an HTTP service, without path, query or credentials; returned without a trailing slash. */
export function httpOrigin() {
  const bare = (url: URL) =>
    url.pathname === '/' && !url.search && !url.hash && !url.username && !url.password;
  return url(['http:', 'https:'], 'an origin such as http://api2:8080', bare).transform(
    (value) => new URL(value).origin,
  );
}

const SAMPLERS = ['always_on', 'always_off', 'traceidratio'].flatMap((name) => [name, `parentbased_${name}`]);

const shared = {
  HOST: host().default('0.0.0.0'),
  PORT: port().default(8080),
  ADMIN_PORT: port().default(9090),
  LOG_LEVEL: z
    .enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'], {
      error: 'one of fatal, error, warn, info, debug, trace, silent',
    })
    .default('info'),
  LOG_FORMAT: z.enum(['json', 'pretty'], { error: '"json" or "pretty"' }).default('json'),
  DRAIN_MS: milliseconds(0).default(0),
  SHUTDOWN_TIMEOUT_MS: milliseconds().default(10_000),
  // Used where the SDK or the tracing reads them; here they are checked.
  OTEL_EXPORTER_OTLP_ENDPOINT: collector().optional(),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: collector().optional(),
  OTEL_TRACES_SAMPLER: z.enum(SAMPLERS, { error: `one of ${SAMPLERS.join(', ')}` }).optional(),
  OTEL_TRACES_SAMPLER_ARG: text(
    (value) => /^(0|1|0?\.\d+|1\.0+)$/.test(value),
    'a ratio from 0 to 1',
  ).optional(),
  OTEL_BSP_SCHEDULE_DELAY: milliseconds().optional(),
  OTEL_BSP_EXPORT_TIMEOUT: milliseconds().optional(),
  OTEL_BSP_MAX_QUEUE_SIZE: wholeNumber(1, 1_000_000).optional(),
  OTEL_BSP_MAX_EXPORT_BATCH_SIZE: wholeNumber(1, 1_000_000).optional(),
};

function collector() {
  return url(['http:', 'https:'], 'a URL such as http://localhost:4318');
}

/**
 * Reads from `env` what every service needs to run (`running`), and the variables of `own` as they are named there.
 * An empty variable counts as one that is not set.
 * @throws {SettingsError} naming every wrong variable at once
 */
export function readEnv<Own extends z.ZodRawShape>(env: Env, own: Own) {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''));
  const ofAll = z.object(shared).safeParse(given);
  const ofOne = z.object(own).safeParse(given);
  const issues = [...(ofAll.error?.issues ?? []), ...(ofOne.error?.issues ?? [])];
  const faults = issues.map((issue) => fault(String(issue.path[0]), issue.message, given));
  if (samePort(given)) faults.push('ADMIN_PORT: expected another port than PORT');
  if (!ofAll.success || !ofOne.success || faults.length > 0) throw new SettingsError(faults);
  return { running: running(ofAll.data), own: ofOne.data };
}

function running(read: z.infer<z.ZodObject<typeof shared>>) {
  return {
    host: read.HOST,
    port: read.PORT,
    adminPort: read.ADMIN_PORT,
    logLevel: read.LOG_LEVEL,
    logFormat: read.LOG_FORMAT,
    drainMs: read.DRAIN_MS,
    shutdownTimeoutMs: read.SHUTDOWN_TIMEOUT_MS,
  };
}

// URLs may hold a password, so what stands in them is never repeated.
function fault(name: string, expected: string, given: Env) {
  const got = /URL|PROXY|ENDPOINT/i.test(name) ? '' : `, got ${JSON.stringify(given[name])}`;
  return `${name}: expected ${expected}${got}`;
}

function samePort({ PORT = '8080', ADMIN_PORT = '9090' }: Env) {
  return Number(PORT) === Number(ADMIN_PORT) && Number(PORT) !== 0;
}
