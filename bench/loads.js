// The two load generators of the benchmark, each with a next hop. They differ in how many requests arrive at once and
// in the headers that the next hop sends.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isInstalled, OTHER_CORE, outputOf, start, startNode, waitUntilReady } from './processes.js';

const NODE_PORT = 18_200;
const NGINX_PORT = 18_201;

/**
 * By name: `nextHop` is the URL of the next hop, and `run` sends requests without a pause, or `rate` per second, and
 * resolves to `perSecond`, `failed`, and latencies in milliseconds.
 */
export const LOADS = {
  node: { title: 'load.js', nextHop: `http://127.0.0.1:${NODE_PORT}`, run: runNode },
  ...(isInstalled('wrk', '--version', 1) &&
    isInstalled('nginx', '-v') && {
      wrk: { title: 'wrk and nginx', nextHop: `http://127.0.0.1:${NGINX_PORT}`, run: runWrk },
    }),
};

/** Starts the next hops. */
export async function startNextHops() {
  startNode(OTHER_CORE, ['next-hop.js'], { env: { PORT: String(NODE_PORT) } });
  if (LOADS.wrk !== undefined) startNginx();
  for (const { nextHop } of Object.values(LOADS)) await waitUntilReady(nextHop);
}

function startNginx() {
  const directory = mkdtempSync(join(tmpdir(), 'onehop-nginx-'));
  process.once('exit', () => rmSync(directory, { recursive: true, force: true, maxRetries: 3 }));
  // Without a master process, ending this one leaves no worker behind.
  const configuration = `daemon off;
master_process off;
pid ${directory}/nginx.pid;
error_log stderr;
events { worker_connections 8192; }
http {
  access_log off;
  keepalive_requests 1000000000;
  server {
    listen 127.0.0.1:${NGINX_PORT};
    default_type "text/plain; charset=utf-8";
    return 200 "Hello World!";
  }
}
`;
  writeFileSync(join(directory, 'nginx.conf'), configuration);
  start(OTHER_CORE, 'nginx', ['-c', join(directory, 'nginx.conf')]);
}

async function runNode(url, connections, seconds, rate) {
  const options = [url, String(connections), String(seconds), ...(rate ? [String(rate)] : [])];
  const text = await outputOf(startNode(OTHER_CORE, ['load.js', ...options]));
  if (text === '') throw new Error(`load.js failed: ${options.join(' ')}`);
  return JSON.parse(text);
}

// wrk has no warm-up, so its first run of one second is discarded.
async function runWrk(url, connections, seconds) {
  const runFor = (duration) => {
    const options = ['-t1', `-c${connections}`, `-d${duration}s`, '--timeout', '10s', '--latency', url];
    return outputOf(start(OTHER_CORE, 'wrk', options));
  };
  await runFor(1);
  const text = await runFor(seconds);
  if (!text.includes('Requests/sec')) throw new Error(`wrk failed: ${text}`);
  const number = (pattern) => Number(pattern.exec(text)?.[1] ?? 0);
  const milliseconds = (percentile) => {
    const [, value = 'NaN', unit = 'ms'] =
      new RegExp(`^ +${percentile}% +([\\d.]+)(us|ms|s)$`, 'm').exec(text) ?? [];
    return Number(value) * { us: 0.001, ms: 1, s: 1000 }[unit];
  };
  const errors = /Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)/.exec(text) ?? [];
  return {
    perSecond: number(/^Requests\/sec: +([\d.]+)$/m),
    p50: milliseconds(50),
    p99: milliseconds(99),
    failed:
      number(/Non-2xx or 3xx responses: (\d+)/) +
      errors.slice(1).reduce((sum, count) => sum + Number(count), 0),
  };
}
