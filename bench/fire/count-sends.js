// Loaded into the caller before its code. Prints each book whose POST is written to a connection more than once. This
// works for every client, because all of them write to `net.Socket`.
import { Socket } from 'node:net';

const sends = new Map();
const write = Socket.prototype._writeGeneric;

// Node calls this again with the same data when the connection is established.
Socket.prototype._writeGeneric = function (isList, data, ...rest) {
  const isOutgoing = !this.server;
  if (isOutgoing && !this.connecting && !this.destroyed)
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
