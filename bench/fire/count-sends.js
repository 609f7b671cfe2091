// Loaded into the caller before its code, for POST requests. Prints each book that the caller sends more than once,
// whatever client it uses: all of them write to net.Socket in the end.
import { Socket } from 'node:net';

const sends = new Map();
const write = Socket.prototype._writeGeneric;

// Node calls this again with the same data when the connection is established.
Socket.prototype._writeGeneric = function (isList, data, ...rest) {
  const isRequest = !this.server;
  if (isRequest && !this.connecting)
    for (const item of isList ? data : [data]) countSend(String(item.chunk ?? item));
  return write.call(this, isList, data, ...rest);
};

function countSend(text) {
  const title = /"title":"([^"]+)"/.exec(text)?.[1];
  if (title === undefined) return;
  const count = (sends.get(title) ?? 0) + 1;
  sends.set(title, count);
  if (count === 2) process.stdout.write(`sent twice: ${title}\n`);
}
