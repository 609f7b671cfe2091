import { NextHop } from 'next-hop';
import { startReplicas } from './replicas.mjs';

const { origin, lookup, stop } = await startReplicas();
const dispatcher = new NextHop(origin, { lookup });
const statuses = new Set();
for (let i = 0; i < 20 && dispatcher.ejectedAddresses.length === 0; i++) {
  const response = await fetch(origin, { dispatcher });
  await response.text();
  statuses.add(response.status);
}
process.stdout.write(`${[...statuses]}, ejected: ${dispatcher.ejectedAddresses}\n`);

// A POST is not sent again after its connection is closed, so it must not go to the ejected address.
const response = await fetch(origin, { dispatcher, method: 'POST', body: 'body' });
process.stdout.write(`${(await response.text()).replace('/ ', '')}\n`);
stop();
const failure = fetch(origin, { dispatcher });
const { code } = await failure.catch(({ cause }) => cause);
process.stdout.write(`${code}\n`);
await dispatcher.close();
