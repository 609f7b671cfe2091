// packages/next-hop/README.md
import { NextHop, warmUp } from 'next-hop';

await warmUp();

const api2 = new NextHop('http://api2:8080', { timeoutMs: 2000 });

export async function get() {
  const response = await api2.get('/respond');
  if (!response.ok) throw new Error(`status ${response.statusCode}`);
  return response.text();
}

export async function post(body) {
  const response = await api2.request({
    method: 'POST',
    path: '/books',
    headers: { 'content-type': 'application/json' },
    body,
  });
  const text = await response.body.text();
  if (response.statusCode >= 300) throw new Error(`status ${response.statusCode}`);
  return text;
}
