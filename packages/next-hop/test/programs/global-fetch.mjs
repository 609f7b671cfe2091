import { NextHop } from 'next-hop';
import { startReplicas } from './replicas.mjs';

const { origin, lookup, stop } = await startReplicas();
const dispatcher = new NextHop(origin, { lookup });
const statuses = [];
for (let i = 0; i < 4; i++) {
  const response = await fetch(origin, { dispatcher });
  await response.text();
  statuses.push(response.status);
}
process.stdout.write(`${statuses.join(' ')}\n`);

// The first address is ejected by now.
const response = await fetch(origin, { dispatcher, method: 'POST', body: 'body' });
process.stdout.write(`${(await response.text()).replace('/ ', '')}\n`);
stop();
const failure = fetch(origin, { dispatcher });
const { code } = await failure.catch(({ cause }) => cause);
process.stdout.write(`${code}\n`);
await dispatcher.close();
