import { NextHop } from 'next-hop';
import createClient from 'openapi-fetch';
import { startReplicas } from './replicas.mjs';

const { origin, lookup, stop } = await startReplicas((req, res) => {
  res.setHeader('content-type', 'application/json');
  if (req.url === '/users/1') res.end('{"name":"Ada"}');
  else res.writeHead(404).end('{"title":"Not found"}');
});
const dispatcher = new NextHop(origin, { lookup });
const client = createClient({ baseUrl: origin, fetch: (request) => fetch(request, { dispatcher }) });
for (const id of [1, 2]) {
  const { data, error, response } = await client.GET('/users/{id}', { params: { path: { id } } });
  process.stdout.write(`${response.status} `);
  // biome-ignore lint/suspicious/noConsole: it formats objects.
  console.log(data ?? error);
}
await dispatcher.close();
stop();
