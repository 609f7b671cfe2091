import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

/** Two addresses with the same port: the first closes each connection without a response, the second echoes requests. */
export async function startReplicas(respond = echo) {
  const good = createServer(respond);
  await new Promise((resolve) => good.listen(0, '127.0.0.2', resolve));
  const { port } = good.address();
  const broken = createServer((req) => req.socket.destroy());
  await new Promise((resolve) => broken.listen(port, '127.0.0.1', resolve));
  return {
    origin: `http://hop.test:${port}`,
    lookup: async () => ['127.0.0.1', '127.0.0.2'].map((address) => ({ address, family: 4 })),
    stop() {
      for (const server of [good, broken]) server.close().closeAllConnections();
    },
  };
}

async function echo(req, res) {
  res.end(`${req.method} ${req.url} ${await text(req)}`);
}
