import express from 'express';
import { Pool } from 'undici';

const pool = new Pool(process.env.NEXT_HOP, { connections: 64 });
const app = express();

app.get('/hello', async (_req, res) => {
  const { body } = await pool.request({ path: '/respond', method: 'GET' });
  res.type('text/plain').send(await body.text());
});

app.listen(Number(process.env.PORT), '127.0.0.1');
