// A load in as few cycles as Node allows: node load.js <url> <connections> <seconds> [requests per second]
// Without a rate, each connection asks again as soon as it is answered. Counts from when every connection
// has been answered, but at least a second in. Prints one line of JSON.
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const LEAST_WARM_UP_MS = 1000;

const [url, connections, seconds, rate] = process.argv.slice(2);
const { hostname, port, pathname, search } = new URL(url);
const REQUEST = `GET ${pathname}${search} HTTP/1.1\r\nHost: ${hostname}:${port}\r\n\r\n`;
const latenciesMs = [];
const idle = [];
const unanswered = new Set();
let settledMs;
let failed = 0;
let isOver = false;

class Connection {
  constructor() {
    this.received = '';
    unanswered.add(this);
    this.socket = connect(Number(port), hostname).setNoDelay(true);
    this.socket.on('data', (data) => this.read(data.latin1Slice()));
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      if (isOver) return;
      failed++;
      unanswered.delete(this);
      new Connection().ask();
    });
  }

  ask() {
    this.sentMs = performance.now();
    this.socket.write(REQUEST);
  }

  read(text) {
    this.received = this.received === '' ? text : this.received + text;
    if (!isWhole(this.received)) return;
    latenciesMs.push(performance.now() - this.sentMs);
    if (settledMs === undefined) this.answered();
    if (!this.received.startsWith('HTTP/1.1 200')) failed++;
    this.received = '';
    if (isOver) return;
    if (rate === undefined) this.ask();
    else idle.push(this);
  }

  answered() {
    if (unanswered.delete(this) && unanswered.size === 0) settledMs = performance.now() - startedMs;
  }
}

function isWhole(text) {
  const head = text.indexOf('\r\n\r\n');
  if (head < 0) return false;
  const length = /content-length: *(\d+)/i.exec(text.slice(0, head));
  return length === null ? text.endsWith('\r\n0\r\n\r\n') : text.length >= head + 4 + Number(length[1]);
}

// At a rate, requests are sent when they are due, on whatever connection is free.
function pace() {
  let sent = 0;
  setInterval(() => {
    const due = ((performance.now() - startedMs) / 1000) * rate;
    for (; sent < due && idle.length > 0; sent++) idle.shift().ask();
  }, 1);
}

async function settle() {
  await sleep(LEAST_WARM_UP_MS);
  while (settledMs === undefined) await sleep(10);
}

const startedMs = performance.now();
const all = Array.from({ length: Number(connections) }, () => new Connection());
for (const one of all) one.ask();
if (rate !== undefined) pace();
await settle();
latenciesMs.length = 0;
const countedMs = performance.now();
await sleep(Number(seconds) * 1000);
const perSecond = (latenciesMs.length / (performance.now() - countedMs)) * 1000;
isOver = true;
latenciesMs.sort((a, b) => a - b);
const at = (share) => latenciesMs[Math.min(latenciesMs.length - 1, Math.floor(latenciesMs.length * share))];
const text = JSON.stringify({ perSecond, p50: at(0.5), p99: at(0.99), settledMs, failed });
process.stdout.write(`${text}\n`, () => process.exit(0));
