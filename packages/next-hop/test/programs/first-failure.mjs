// Sends requests that succeed, prints `first failure`, and sends some that fail. With --trace-deopt, V8 prints one or
// more lines for each function that it deoptimizes.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { NextHop, warmUp } from 'next-hop';

// After this many requests, V8 has also optimized the code again that it deoptimized because of `warmUp`.
const OPTIMIZING_REQUESTS = 5000;
// The retry budget counts exchanges per second. V8 deoptimizes it when the process's first second ends, failure or not,
// and has optimized it again a tenth of a second later.
const OPTIMIZING_MS = 1100;
const FAILING_REQUESTS = 10;
const [, program, mode] = process.argv;

if (mode === 'server') {
  // The server has its own process, so that the output of V8 is only about the client.
  const respond = (req, res) => (req.url === '/reset' ? req.socket.resetAndDestroy() : res.end('text'));
  const server = createServer(respond).listen(0, '127.0.0.1', () => process.send(server.address().port));
  process.once('disconnect', () => process.exit());
} else {
  const server = fork(program, ['server'], { execArgv: [] });
  const [port] = await once(server, 'message');
  if (mode === 'warm') await warmUp();
  const nextHop = new NextHop(`http://127.0.0.1:${port}`);
  for (let sent = 0; sent < OPTIMIZING_REQUESTS || performance.now() < OPTIMIZING_MS; sent++)
    await nextHop.get('/');
  process.stdout.write('first failure\n');
  for (let sent = 0; sent < FAILING_REQUESTS; sent++) {
    const { code } = await nextHop.get('/reset').catch((error) => error);
    if (code !== 'connection_terminated') throw new Error(`unexpected outcome: ${code}`);
  }
  await nextHop.close();
  server.disconnect();
}
