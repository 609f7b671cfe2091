// https://github.com/nodejs/undici/blob/v8.12.4/docs/docs/api/Interceptors.md#interceptorsdnsopts
import { Agent, interceptors } from 'undici';
import { clientOf, retry, timeouts } from './undici-retry.js';

// The interceptor that comes last is the outermost, so each retry gets the next address.
// Without IPv6 addresses, `dualStack` only costs a second lookup.
const dns = interceptors.dns({ maxTTL: 2000, dualStack: false, affinity: 4 });

export const { get, post } = clientOf(new Agent(timeouts).compose(dns, retry));
