// https://github.com/axios/axios#request-config and https://github.com/softonic/axios-retry#options
import { Agent } from 'node:http';
import axios from 'axios';
import axiosRetry from 'axios-retry';

const client = axios.create({
  baseURL: 'http://api2:8080',
  httpAgent: new Agent({ keepAlive: true }),
  timeout: 650,
  responseType: 'text',
});
// The default condition retries a POST after a network error, too.
axiosRetry(client, { retries: 2, shouldResetTimeout: true, retryDelay: axiosRetry.linearDelay(10) });

export async function get() {
  const signal = AbortSignal.timeout(2000);
  // axios-retry retries a timeout only if it has the code ETIMEDOUT. A POST keeps the defaults.
  const { data } = await client.get('/respond', { signal, transitional: { clarifyTimeoutError: true } });
  return data;
}

export async function post(body) {
  const signal = AbortSignal.timeout(2000);
  const headers = { 'content-type': 'application/json' };
  const { data } = await client.post('/books', body, { signal, headers });
  return data;
}
