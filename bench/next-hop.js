// Answers every request with the same bytes: a next hop that is never the bottleneck.
import { createServer } from 'node:net';

const BODY = 'Hello World!';
const ANSWER = Buffer.from(
  `HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
);

createServer((socket) => {
  let rest = '';
  socket.setNoDelay(true).on('error', () => {});
  socket.on('data', (data) => {
    const heads = (rest + data.latin1Slice()).split('\r\n\r\n');
    rest = heads.pop();
    for (const _ of heads) socket.write(ANSWER);
  });
}).listen(Number(process.env.PORT), '127.0.0.1');
