// node load.js <port> <minutes>: sends requests over 64 connections without a pause, and disconnects before 2 % of the
// responses. Prints one line of JSON: `ok` responses have the text of their own request, `failed` ones are the 500 that
// api sends if it has no usable response, `closed` connections ended without a response, and all other responses are
// `wrong`.
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const CONNECTIONS = 64;
const LEAVING = 0.02;
const [port, minutes] = process.argv.slice(2).map(Number);
const counts = { ok: 0, failed: 0, left: 0, closed: 0, wrong: 0 };
let requests = 0;
let hasEnded = false;

class Client {
  constructor() {
    this.received = '';
    this.hasLeft = false;
    this.socket = connect(port, '127.0.0.1').setNoDelay(true);
    this.socket.on('error', () => {});
    this.socket.on('connect', () => this.send());
    this.socket.on('data', (data) => this.read(data.latin1Slice()));
    this.socket.on('close', () => {
      if (!this.hasLeft && !hasEnded) counts.closed++;
      if (!hasEnded) new Client();
    });
  }

  send() {
    this.id = `soak-${++requests}`;
    this.socket.write(`GET /hello HTTP/1.1\r\nHost: api\r\nX-Request-Id: ${this.id}\r\n\r\n`);
    if (Math.random() >= LEAVING) return;
    this.hasLeft = true;
    counts.left++;
    setTimeout(() => this.socket.destroy(), Math.random() * 5);
  }

  read(text) {
    if (this.hasLeft) return;
    this.received += text;
    const headEnd = this.received.indexOf('\r\n\r\n');
    if (headEnd < 0) return;
    const head = this.received.slice(0, headEnd);
    const body = this.received.slice(headEnd + 4);
    if (body.length < Number(/content-length: *(\d+)/i.exec(head)?.[1])) return;
    this.received = '';
    counts[this.outcomeOf(head, body)]++;
    if (hasEnded) this.socket.destroy();
    else this.send();
  }

  outcomeOf(head, body) {
    if (!head.includes(`\r\nx-request-id: ${this.id}\r\n`)) return 'wrong';
    if (head.startsWith('HTTP/1.1 200') && body === this.id) return 'ok';
    return head.startsWith('HTTP/1.1 500') && body === 'Internal error contacting api2' ? 'failed' : 'wrong';
  }
}

for (let i = 0; i < CONNECTIONS; i++) new Client();
await sleep(minutes * 60_000);
hasEnded = true;
await sleep(3000);
process.stdout.write(JSON.stringify(counts), () => process.exit(0));
