import express from 'express';
import request from 'supertest';
import { sendText } from './send';

test('sendText sets Content-Length to the number of bytes of the text, for GET and HEAD', async () => {
  const text = 'Grüß Gott 📚';
  const app = express().get('/', (_req, res) => sendText(res, 200, text));
  const response = await request(app).get('/');
  expect(response.text).toBe(text);
  expect(response.headers['content-length']).toBe('16');
  expect((await request(app).head('/')).headers['content-length']).toBe('16');
});
