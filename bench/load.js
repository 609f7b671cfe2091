// A load in as few cycles as Node allows: node load.js <url> <connections> <seconds> [requests per second]
// Without a rate, each connection asks again as soon as it is answered. Prints one line of JSON.
import { connect } from 'node:net';

const [url, connections, seconds, rate] = process.argv.slice(2);
const { hostname, port, pathname, search } = new URL(url);
const REQUEST = `GET ${pathname}${search} HTTP/1.1\r\nHost: ${hostname}:${port}\r\n\r\n`;
const latenciesMs = [];
const idle = [];
let failed = 0;
let isOver = false;

class Connection {
  constructor() {
    this.received = '';
    this.socket = connect(Number(port), hostname).setNoDelay(true);
    this.socket.on('data', (data) => this.read(data.latin1Slice()));
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      if (isOver) return;
      failed++;
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
    if (!this.received.startsWith('HTTP/1.1 200')) failed++;
    this.received = '';
    if (isOver) return;
    if (rate === undefined) this.ask();
    else idle.push(this);
  }
}

function isWhole(text) {
  const head = text.indexOf('\r\n\r\n');
  if (head < 0) return false;
  const length = /content-length: *(\d+)/i.exec(text.slice(0, head));
  return length === null ? text.endsWith('\r\n0\r\n\r\n') : text.length >= head + 4 + Number(length[1]);
}

// At a rate, requests are sent when they are due, on whatever connection is free.
function pace(all) {
  idle.push(...all);
  const startedMs = performance.now();
  let sent = 0;
  const timer = setInterval(() => {
    const due = ((performance.now() - startedMs) / 1000) * rate;
    for (; sent < due && idle.length > 0; sent++) idle.shift().ask();
  }, 1);
  return () => clearInterval(timer);
}

function begin(connected) {
  for (const one of connected) one.ask();
}

const all = Array.from({ length: Number(connections) }, () => new Connection());
const stop = rate === undefined ? begin(all) : pace(all);

setTimeout(() => {
  isOver = true;
  stop?.();
  for (const { socket } of all) socket.destroy();
  latenciesMs.sort((a, b) => a - b);
  const at = (share) => latenciesMs[Math.min(latenciesMs.length - 1, Math.floor(latenciesMs.length * share))];
  const perSecond = latenciesMs.length / Number(seconds);
  process.stdout.write(`${JSON.stringify({ perSecond, p50: at(0.5), p99: at(0.99), failed })}\n`, () =>
    process.exit(0),
  );
}, Number(seconds) * 1000);
