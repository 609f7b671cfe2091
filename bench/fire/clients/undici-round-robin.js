// https://github.com/nodejs/undici/blob/v8.12.4/docs/docs/api/RoundRobinPool.md
import { RoundRobinPool } from 'undici';
import { clientOf, retry, timeouts } from './undici-retry.js';

// `clientTtl` replaces connections, so that new replicas get some.
const pool = new RoundRobinPool('http://api2:8080', { ...timeouts, connections: 64, clientTtl: 5000 });

export const { get, post } = clientOf(pool.compose(retry));
