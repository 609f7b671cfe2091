// The program that typical tutorials end with.
import express from 'express4';
import fetch from 'isomorphic-fetch';

const app = express();

app.get('/hello', async (_req, res) => {
  try {
    const response = await fetch(`${process.env.NEXT_HOP}/respond`);
    if (!response.ok) return res.status(500).send(`Error from api2: ${response.status}`);
    res.send(await response.text());
  } catch {
    res.status(500).send('Internal error contacting api2');
  }
});

app.listen(Number(process.env.PORT), '127.0.0.1');
