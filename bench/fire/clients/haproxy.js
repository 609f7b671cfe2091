// fetch through HAProxy, which runs next to the caller: haproxy.cfg has the timeouts and retries.

async function send(path, init) {
  const response = await fetch(`http://127.0.0.1:8081${path}`, {
    ...init,
    signal: AbortSignal.timeout(2000),
  });
  const body = await response.text();
  if (!response.ok) throw new Error(`status ${response.status}`);
  return body;
}

export const get = () => send('/respond');

export const post = (body) =>
  send('/books', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
