// https://github.com/sindresorhus/got/blob/main/documentation/6-timeout.md
// https://github.com/sindresorhus/got/blob/main/documentation/7-retry.md
import { Agent } from 'node:http';
import got from 'got';

const client = got.extend({
  agent: { http: new Agent({ keepAlive: true }) },
  timeout: { request: 650 },
  // By default, the first retry waits for a second.
  retry: { limit: 2, backoffLimit: 10, noise: 10 },
});

export const get = () => client('http://api2:8080/respond', { signal: AbortSignal.timeout(2000) }).text();

export const post = (body) =>
  client
    .post('http://api2:8080/books', {
      signal: AbortSignal.timeout(2000),
      headers: { 'content-type': 'application/json' },
      body,
    })
    .text();
