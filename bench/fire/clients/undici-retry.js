import { interceptors } from 'undici';

// The defaults do not retry timeouts, and wait for half a second before the first retry, which leaves no time for a
// second one: https://github.com/nodejs/undici/blob/v8.12.4/docs/docs/api/RetryHandler.md#retryoptions
export const retry = interceptors.retry({
  maxRetries: 2,
  minTimeout: 20,
  maxTimeout: 20,
  errorCodes: [
    'ECONNRESET',
    'ECONNREFUSED',
    'ENOTFOUND',
    'ENETDOWN',
    'ENETUNREACH',
    'EHOSTDOWN',
    'EHOSTUNREACH',
    'EPIPE',
    'UND_ERR_SOCKET',
    'UND_ERR_CONNECT_TIMEOUT',
    'UND_ERR_HEADERS_TIMEOUT',
    'UND_ERR_BODY_TIMEOUT',
  ],
});

export const timeouts = { headersTimeout: 650, bodyTimeout: 650, connect: { timeout: 650 } };

/** Sends requests through `dispatcher`. */
export function clientOf(dispatcher) {
  const send = async (options) => {
    const { statusCode, body } = await dispatcher.request({
      origin: 'http://api2:8080',
      signal: AbortSignal.timeout(2000),
      ...options,
    });
    const text = await body.text();
    if (statusCode >= 300) throw new Error(`status ${statusCode}`);
    return text;
  };
  return {
    get: () => send({ method: 'GET', path: '/respond' }),
    post: (body) =>
      send({ method: 'POST', path: '/books', headers: { 'content-type': 'application/json' }, body }),
  };
}
