// The next hop without a framework.
import { createServer } from 'node:http';

const BODY = 'Hello World!';

createServer((req, res) => {
  if (req.url !== '/respond') return res.writeHead(404).end();
  res.setHeader('content-type', 'text/plain; charset=utf-8');
  res.setHeader('content-length', BODY.length);
  res.end(BODY);
}).listen(Number(process.env.PORT), '127.0.0.1');
