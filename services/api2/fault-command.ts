/**
 * Shows, sets and clears the fault of the api2 instance in the same container:
 *   fault-command                      shows the active fault
 *   fault-command delay rate=0.5 …     sets a fault; rate, delayMs, status and seconds may follow the kind
 *   fault-command off                  clears the fault
 */
import { request } from 'undici';

const [kind, ...fields] = process.argv.slice(2);
const url = `http://127.0.0.1:${process.env.ADMIN_PORT || 9090}/fault`;

async function main() {
  const { statusCode, body } = await send();
  const text = await body.text();
  if (statusCode === 404) throw new Error('Fault injection is off: start api2 with FAULTS=on.');
  if (statusCode >= 400) throw new Error(text);
  process.stdout.write(`${text || '{}'}\n`);
}

function send() {
  if (kind === undefined) return request(url);
  if (kind === 'off') return request(url, { method: 'DELETE' });
  const body = JSON.stringify({ kind, ...Object.fromEntries(fields.map(parseField)) });
  return request(url, { method: 'PUT', headers: { 'content-type': 'application/json' }, body });
}

function parseField(field: string): [string, unknown] {
  const [name = '', value = ''] = field.split('=');
  return [name, value.trim() === '' ? value : Number(value)];
}

main().catch((error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
