// Loaded before an example: resolves the host name of the example to a server of this process.
import dns from 'node:dns/promises';
import { createServer } from 'node:http';
import { syncBuiltinESMExports } from 'node:module';

const server = createServer((req, res) => {
  if (req.method === 'POST') res.writeHead(201).end('created');
  else res.end('{"name":"Ada"}');
});
await new Promise((resolve) => server.listen(8080, '127.0.0.9', resolve));
server.unref();

dns.lookup = async (name) => {
  if (name !== 'users') throw new Error(`looked up ${name}`);
  return [{ address: '127.0.0.9', family: 4 }];
};
syncBuiltinESMExports();
