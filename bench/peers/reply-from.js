import replyFrom from '@fastify/reply-from';
import fastify from 'fastify';

const app = fastify();

app.register(replyFrom, {
  base: process.env.NEXT_HOP,
  undici: { connections: 64, pipelining: 1, bodyTimeout: 2000, headersTimeout: 2000 },
});
app.get('/hello', (_request, reply) => reply.from('/respond'));

await app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
