import { z } from 'zod';

/** Environment variables: `process.env`, or an object in a test. */
export type Env = Readonly<Record<string, string | undefined>>;

/** Lists every invalid environment variable on a line of its own, with the expected value. */
export class SettingsError extends Error {
  constructor(errors: readonly string[]) {
    super(['Invalid configuration:', ...errors].join('\n  '));
  }
}

// Node stores timer delays as signed 32-bit integers; timers with a longer delay fire immediately.
const MAX_TIMER_MS = 2 ** 31 - 1;

const text = (isValid: (value: string) => boolean, expected: string) => z.string().refine(isValid, expected);

/** A whole number in decimal digits, from `min` to `max`. */
export function wholeNumber(min: number, max: number) {
  const isValid = (value: string) => /^\d{1,16}$/.test(value) && Number(value) >= min && Number(value) <= max;
  return text(isValid, `a whole number from ${min} to ${max}`).transform(Number);
}

/** A duration in milliseconds that fits a Node timer. */
export const milliseconds = (min = 1) => wholeNumber(min, MAX_TIMER_MS);

/** A TCP port; 0 selects any free port. */
export const port = () => wholeNumber(0, 65_535);

export const host = () => text((value) => /^[\w.:-]+$/.test(value), 'an IP address or a host name');

export const onOff = () =>
  text((value) => value === 'on' || value === 'off', '"on" or "off"').transform((value) => value === 'on');

/** A URL with one of `schemes`. */
export function url(
  schemes: readonly string[],
  expected: string,
  isValid: (url: URL) => boolean = () => true,
) {
  const isValidUrl = (value: string) => {
    const parsed = URL.parse(value);
    return parsed !== null && schemes.includes(parsed.protocol) && parsed.hostname !== '' && isValid(parsed);
  };
  return text(isValidUrl, expected);
}

/** The origin of an HTTP service, without path, query or credentials; the trailing slash is removed. */
export function httpOrigin() {
  const isBareOrigin = (url: URL) =>
    url.pathname === '/' && !url.search && !url.hash && !url.username && !url.password;
  return url(['http:', 'https:'], 'an origin such as http://api2:8080', isBareOrigin).transform(
    (value) => new URL(value).origin,
  );
}

const SAMPLERS = ['always_on', 'always_off', 'traceidratio'].flatMap((name) => [name, `parentbased_${name}`]);

const sharedSchema = {
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
  // Only validated here; the OpenTelemetry SDK and telemetry/open-telemetry.ts read them.
  OTEL_EXPORTER_OTLP_ENDPOINT: collectorUrl().optional(),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: collectorUrl().optional(),
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

/** The variable of fault injection, for services that take part in it. */
export const faultsVariable = {
  FAULTS: onOff().default(false),
};

function collectorUrl() {
  return url(['http:', 'https:'], 'a URL such as http://localhost:4318');
}

/**
 * Reads and validates the settings that all services share, and those in the schema `own`. An empty variable
 * counts as unset.
 * @throws {SettingsError} listing every invalid variable
 */
export function readEnv<Own extends z.ZodRawShape>(env: Env, own: Own) {
  const variables = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ''));
  const sharedResult = z.object(sharedSchema).safeParse(variables);
  const ownResult = z.object(own).safeParse(variables);
  const issues = [...(sharedResult.error?.issues ?? []), ...(ownResult.error?.issues ?? [])];
  const errors = issues.map((issue) => describeError(String(issue.path[0]), issue.message, variables));
  if (arePortsEqual(variables)) errors.push('ADMIN_PORT: expected a port other than PORT');
  if (!sharedResult.success || !ownResult.success || errors.length > 0) throw new SettingsError(errors);
  return { shared: sharedSettings(sharedResult.data), own: ownResult.data };
}

function sharedSettings(values: z.infer<z.ZodObject<typeof sharedSchema>>) {
  return {
    host: values.HOST,
    port: values.PORT,
    adminPort: values.ADMIN_PORT,
    logLevel: values.LOG_LEVEL,
    logFormat: values.LOG_FORMAT,
    drainMs: values.DRAIN_MS,
    shutdownTimeoutMs: values.SHUTDOWN_TIMEOUT_MS,
  };
}

// URLs may contain a password, so their value is not shown.
function describeError(name: string, expected: string, variables: Env) {
  const actual = /URL|PROXY|ENDPOINT/i.test(name) ? '' : `, got ${JSON.stringify(variables[name])}`;
  return `${name}: expected ${expected}${actual}`;
}

function arePortsEqual({ PORT = '8080', ADMIN_PORT = '9090' }: Env) {
  return Number(PORT) === Number(ADMIN_PORT) && Number(PORT) !== 0;
}
