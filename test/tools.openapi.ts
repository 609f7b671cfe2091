import { execFile } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { request } from 'undici';
import { type Program, start } from './programs';

const FOLDER = 'test/openapi-tools';
const DOCUMENT = 'dist/openapi/openapi.json';
const TYPES = 'dist/openapi/schema.ts';

let programs: Program[] = [];
let url = '';

beforeAll(async () => {
  const api2 = await start('api2');
  const api = await start('api', { API2_URL: api2.url });
  programs = [api, api2];
  url = api.url;
  const { body } = await request(`${url}/openapi.json`);
  mkdirSync('dist/openapi', { recursive: true });
  writeFileSync(DOCUMENT, await body.text());
});

afterAll(async () => {
  for (const program of programs) await program.stop('SIGKILL');
});

/** Runs a program of the packages in test/openapi-tools. Resolves to its output if it fails, else to an empty string. */
async function run(program: string, ...args: string[]) {
  const file = `${FOLDER}/node_modules/${program}`;
  const outputOf = ({ stdout, stderr }: { stdout: string; stderr: string }) => `${stdout}\n${stderr}`;
  return promisify(execFile)(process.execPath, [file, ...args]).then(() => '', outputOf);
}

test('spectral reports no problems in the served document with its recommended rules', async () => {
  const args = ['lint', DOCUMENT, '--ruleset', `${FOLDER}/.spectral.yaml`, '--fail-severity', 'hint'];
  expect(await run('.bin/spectral', ...args)).toBe('');
});

test('a generated client compiles and works when it posts a book without a year', async () => {
  expect(await run('.bin/openapi-typescript', DOCUMENT, '--output', TYPES)).toBe('');
  expect(await run('.bin/tsc', '--project', FOLDER)).toBe('');
  // Rejects if the client's exit code is not 0.
  await promisify(execFile)(process.execPath, [`${FOLDER}/client.ts`, url]);
}, 60_000);
