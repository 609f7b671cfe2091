import { createRequire } from 'node:module';

const imported = await import('next-hop');
const required = createRequire(import.meta.url)('next-hop');
const names = Object.keys(required).sort();
const isSame = names.every((name) => imported[name] === required[name]);
const hasSameNames = Object.keys(imported).sort().join() === names.join();
process.stdout.write(isSame && hasSameNames ? 'same\n' : `different: ${names} ${Object.keys(imported)}\n`);
