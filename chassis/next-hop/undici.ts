import type {
  buildConnector as BuildConnector,
  EnvHttpProxyAgent,
  errors as Errors,
  Pool as PoolClass,
} from 'undici';

// From undici's own files, which its exact version in package.json holds still: its index loads fetch,
// WebSocket and mocks too, an eighth of the service's memory (docs/decisions/0009-undici-files.md).
export const Pool: typeof PoolClass = require('undici/lib/dispatcher/pool');
export const buildConnector: typeof BuildConnector = require('undici/lib/core/connect');
export const errors: typeof Errors = require('undici/lib/core/errors');

/** With all of undici, as a proxy needs its whole API. */
export function proxyAgent(options: EnvHttpProxyAgent.Options): EnvHttpProxyAgent {
  const Agent: typeof EnvHttpProxyAgent = require('undici').EnvHttpProxyAgent;
  return new Agent(options);
}
