// The next hop of a typical tutorial.
import express from 'express4';

const app = express();

app.get('/respond', (_req, res) => {
  res.send('Hello World!');
});

app.listen(Number(process.env.PORT), '127.0.0.1');
