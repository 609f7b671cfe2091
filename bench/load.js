// A load generator with minimal CPU cost: node load.js <url> <connections> <seconds> [requests per second]
// Without a rate, each connection sends its next request as soon as it has a response. Measuring starts once every
// connection has had a response and half a second has passed. Prints one line of JSON.
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const MIN_WARM_UP_MS = 500;
const MAX_WARM_UP_MS = 30_000;

const [url, connections, seconds, rate] = process.argv.slice(2);
const { hostname, port, pathname, search } = new URL(url);
const REQUEST = `GET ${pathname}${search} HTTP/1.1\r\nHost: ${hostname}:${port}\r\n\r\n`;
const latenciesMs = [];
const idle = [];
const waitingForFirst = new Set();
let firstResponsesMs;
let failed = 0;
let hasEnded = false;

class Connection {
  constructor() {
    this.received = '';
    waitingForFirst.add(this);
    this.socket = connect(Number(port), hostname).setNoDelay(true);
    this.socket.on('data', (data) => this.read(data.latin1Slice()));
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      if (hasEnded) return;
      failed++;
      waitingForFirst.delete(this);
      new Connection().send();
    });
  }

  send() {
    this.sentMs = performance.now();
    this.socket.write(REQUEST);
  }

  read(text) {
    this.received = this.received === '' ? text : this.received + text;
    if (!isComplete(this.received)) return;
    latenciesMs.push(performance.now() - this.sentMs);
    if (firstResponsesMs === undefined) this.recordFirstResponse();
    if (!this.received.startsWith('HTTP/1.1 200')) failed++;
    this.received = '';
    if (hasEnded) return;
    if (rate === undefined) this.send();
    else idle.push(this);
  }

  recordFirstResponse() {
    if (waitingForFirst.delete(this) && waitingForFirst.size === 0)
      firstResponsesMs = performance.now() - startedMs;
  }
}

function isComplete(text) {
  const headEnd = text.indexOf('\r\n\r\n');
  if (headEnd < 0) return false;
  const length = /content-length: *(\d+)/i.exec(text.slice(0, headEnd));
  return length === null ? text.endsWith('\r\n0\r\n\r\n') : text.length >= headEnd + 4 + Number(length[1]);
}

// Sends requests at a fixed rate on idle connections.
function pace() {
  let sent = 0;
  setInterval(() => {
    const due = ((performance.now() - startedMs) / 1000) * rate;
    for (; sent < due && idle.length > 0; sent++) idle.shift().send();
  }, 1);
}

async function waitForFirstResponses() {
  await sleep(MIN_WARM_UP_MS);
  for (; firstResponsesMs === undefined; await sleep(10))
    if (performance.now() - startedMs > MAX_WARM_UP_MS)
      throw new Error(`${waitingForFirst.size} of ${connections} connections had no response within 30 s`);
}

const startedMs = performance.now();
const connected = Array.from({ length: Number(connections) }, () => new Connection());
for (const connection of connected) connection.send();
if (rate !== undefined) pace();
await waitForFirstResponses();
latenciesMs.length = 0;
const measuringSinceMs = performance.now();
await sleep(Number(seconds) * 1000);
const perSecond = (latenciesMs.length / (performance.now() - measuringSinceMs)) * 1000;
hasEnded = true;
latenciesMs.sort((a, b) => a - b);
const percentile = (fraction) =>
  latenciesMs[Math.min(latenciesMs.length - 1, Math.floor(latenciesMs.length * fraction))];
const text = JSON.stringify({
  perSecond,
  p50: percentile(0.5),
  p99: percentile(0.99),
  firstResponsesMs,
  failed,
});
process.stdout.write(`${text}\n`, () => process.exit(0));
