// Node's fetch, nothing else: https://nodejs.org/docs/latest-v24.x/api/globals.html#fetch

async function send(path, init) {
  const response = await fetch(`http://api2:8080${path}`, init);
  const body = await response.text();
  if (!response.ok) throw new Error(`status ${response.status}`);
  return body;
}

export const get = () => send('/respond');

export const post = (body) =>
  send('/books', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
