// Responds to 98 % of the requests with their request id, and closes the connection without a response for the others.
import { createServer } from 'node:net';

const FAILURES = 0.02;

createServer((socket) => {
  let partial = '';
  socket.setNoDelay(true).on('error', () => {});
  socket.on('data', (data) => {
    const requests = (partial + data.latin1Slice()).split('\r\n\r\n');
    partial = requests.pop();
    for (const request of requests) {
      if (Math.random() < FAILURES) return socket.destroy();
      const [, id = 'none'] = /^x-request-id: (.*)$/im.exec(request) ?? [];
      socket.write(
        `HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ${id.length}\r\n\r\n${id}`,
      );
    }
  });
}).listen(Number(process.env.PORT), '127.0.0.1');
