import { createServer } from 'node:http';
import { Pool } from 'undici';

const pool = new Pool(process.env.NEXT_HOP, { connections: 64 });

createServer(async (req, res) => {
  if (req.url !== '/hello') return res.writeHead(404).end();
  try {
    const { body } = await pool.request({ path: '/respond', method: 'GET' });
    const text = await body.text();
    res.setHeader('content-type', 'text/plain; charset=utf-8');
    res.setHeader('content-length', Buffer.byteLength(text));
    res.end(text);
  } catch {
    res.writeHead(500).end();
  }
}).listen(Number(process.env.PORT), '127.0.0.1');
