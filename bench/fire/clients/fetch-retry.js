// fetch in a loop with a timeout for each attempt, as most services write it:
// https://developer.mozilla.org/en-US/docs/Web/API/AbortSignal/timeout_static

async function attempt(path, init) {
  const response = await fetch(`http://api2:8080${path}`, { ...init, signal: AbortSignal.timeout(650) });
  const body = await response.text();
  if (!response.ok) throw new Error(`status ${response.status}`);
  return body;
}

export async function get() {
  for (let retries = 0; ; retries++) {
    try {
      return await attempt('/respond');
    } catch (error) {
      if (retries === 2) throw error;
    }
  }
}

// A POST is not retried, because api2 may have stored the book before the attempt failed.
export const post = (body) =>
  attempt('/books', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
