// Sends the same bytes in response to every request, so that the next hop is never the bottleneck.
import { createServer } from 'node:net';

const BODY = 'Hello World!';
const RESPONSE = Buffer.from(
  `HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`,
);

createServer((socket) => {
  let partial = '';
  socket.setNoDelay(true).on('error', () => {});
  socket.on('data', (data) => {
    const requests = (partial + data.latin1Slice()).split('\r\n\r\n');
    partial = requests.pop();
    for (const _ of requests) socket.write(RESPONSE);
  });
}).listen(Number(process.env.PORT), '127.0.0.1');
