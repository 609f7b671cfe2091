// The service that calls api2, in 20 lines. It is the same for every client.
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

// `get` and `post` resolve to the body of a complete 2xx response and reject otherwise.
const { get, post } = await import(`./clients/${process.env.CLIENT}.js`);

createServer(async (req, res) => {
  const startedMs = performance.now();
  const respond = (status, body) => {
    const durationMs = (performance.now() - startedMs).toFixed(2);
    res.writeHead(status, { 'server-timing': `client;dur=${durationMs}` }).end(body);
  };
  try {
    respond(200, req.method === 'POST' ? await post(await text(req)) : await get());
  } catch (error) {
    respond(502, String(error?.cause?.code ?? error?.code ?? error));
  }
}).listen(8080);
