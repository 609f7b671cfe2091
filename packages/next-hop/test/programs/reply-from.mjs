import replyFrom from '@fastify/reply-from';
import fastify from 'fastify';
import { NextHop } from 'next-hop';
import { startReplicas } from './replicas.mjs';

const { origin, lookup, stop } = await startReplicas();
const undici = new NextHop(origin, { lookup });
const app = fastify();
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', (_request, payload, done) => done(null, payload));
app.register(replyFrom, { base: origin, undici });
app.all('/*', (_request, reply) => reply.from());

// Until the address that closes connections is ejected, a POST may fail there.
for (let i = 0; i < 5; i++) await app.inject('/warm-up');
const got = await app.inject('/a');
process.stdout.write(`${got.statusCode} ${got.body}\n`);
const posted = await app.inject({
  method: 'POST',
  url: '/b',
  headers: { 'content-type': 'text/plain' },
  payload: 'body',
});
process.stdout.write(`${posted.statusCode} ${posted.body}\n`);
await app.close();
await undici.close();
stop();
