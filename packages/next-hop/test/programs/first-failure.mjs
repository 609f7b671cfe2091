// Sends requests that succeed, prints `first failure`, and sends some that fail. With --trace-deopt, V8 prints one or
// more lines for each function that it deoptimizes.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { NextHop, warmUp } from 'next-hop';

// After this many requests, V8 has also optimized the code again that it deoptimized because of `warmUp`.
const OPTIMIZING_REQUESTS = 5000;
// The retry budget counts exchanges in buckets of one second. When the process is one second old, the second bucket
// starts, and V8 deoptimizes this code even if no request has failed. V8 optimized it again within 0.1 s.
const MIN_UPTIME_MS = 1100;
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
  for (let sent = 0; sent < OPTIMIZING_REQUESTS || performance.now() < MIN_UPTIME_MS; sent++)
    await nextHop.get('/');
  process.stdout.write('first failure\n');
  for (let sent = 0; sent < FAILING_REQUESTS; sent++) {
    const { code } = await nextHop.get('/reset').catch((error) => error);
    if (code !== 'connection_terminated') throw new Error(`unexpected outcome: ${code}`);
  }
  await nextHop.close();
  server.disconnect();
}
