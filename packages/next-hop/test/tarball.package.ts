import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';

const PACKAGE = resolve('packages/next-hop');
const TOOLS = join(PACKAGE, 'test/tools/node_modules');
const NODES = { 22: join(TOOLS, `node22-linux-${process.arch}/bin/node`), 24: process.execPath };
const RUNS = ([22, 24] as const).flatMap((node) => [[node, 'mjs'] as const, [node, 'cjs'] as const]);

/** An empty folder in which the tarball is installed, as a user does. */
const folder = mkdtempSync(join(tmpdir(), 'next-hop-'));
let tarball = '';
let packed: { files: { path: string }[] } = { files: [] };

const execute = promisify(execFile);

beforeAll(async () => {
  // As in a fresh clone: `npm pack` has to build the package.
  rmSync(join(PACKAGE, 'dist'), { recursive: true, force: true });
  const stdout = await runIn(PACKAGE, 'npm', 'pack', '--json', '--pack-destination', folder);
  const [result] = JSON.parse(stdout.slice(stdout.indexOf('['))) as [typeof packed & { filename: string }];
  packed = result;
  tarball = join(folder, result.filename);
  writeFileSync(join(folder, 'package.json'), '{}');
  await run('npm', 'install', '--no-audit', '--no-fund', tarball);
  // Other packages that the programs use.
  mkdirSync(join(folder, 'node_modules/@fastify'), { recursive: true });
  for (const name of ['fastify', '@fastify/reply-from', 'openapi-fetch'])
    symlinkSync(join(TOOLS, name), join(folder, 'node_modules', name));
  cpSync(join(PACKAGE, 'test/programs'), folder, { recursive: true });
}, 120_000);

afterAll(() => rmSync(folder, { recursive: true }));

/** Runs a program in the folder: resolves to its output, or rejects with it if the program fails. */
async function run(program: string, ...args: string[]) {
  return runIn(folder, program, ...args);
}

async function runIn(cwd: string, program: string, ...args: string[]) {
  return execute(program, args, { cwd }).then(
    ({ stdout }) => stdout,
    ({ stdout, stderr }: { stdout: string; stderr: string }) => {
      throw new Error(`${stdout}\n${stderr}`);
    },
  );
}

/** The code examples of the README, as ES modules or as CommonJS. */
function examples(system: 'mjs' | 'cjs') {
  const readme = readFileSync(join(PACKAGE, 'README.md'), 'utf8');
  const blocks = [...readme.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => String(code));
  return system === 'mjs' ? blocks : blocks.map(toCommonJs);
}

function toCommonJs(code: string) {
  const imports = /^import \{ (.*?) \} from '(.*?)';\n/gm;
  const required = [...code.matchAll(imports)].map(
    ([, names, from]) => `const { ${names} } = require('${from}');\n`,
  );
  return `${required.join('')}(async () => {\n${code.replace(imports, '')}\n})();\n`;
}

test('the tarball contains the build, README, LICENSE and package.json, and nothing else', () => {
  const paths = packed.files.map(({ path }) => path).sort();
  const sources = paths.filter((path) => path.endsWith('.js')).map((path) => path.slice(0, -3));
  expect(sources).toContain('dist/index');
  const expected = sources.flatMap((source) => [`${source}.js`, `${source}.d.ts`]);
  expected.push('LICENSE', 'README.md', 'dist/index.d.mts', 'dist/index.mjs', 'package.json');
  expect(paths).toEqual(expected.sort());
  expect(paths.filter((path) => path.includes('test'))).toEqual([]);
});

test('publint reports no problems', async () => {
  const output = await run(process.execPath, join(TOOLS, 'publint/src/cli.js'), 'run', tarball, '--strict');
  expect(output).toMatch(/All good!/);
});

test('are-the-types-wrong reports no problems', async () => {
  const output = await run(
    process.execPath,
    join(TOOLS, '@arethetypeswrong/cli/dist/index.js'),
    tarball,
    '--no-emoji',
  );
  expect(output).toMatch(/No problems found/);
});

test('the examples of the README compile with strict TypeScript, as ES modules and as CommonJS', async () => {
  const types = join(TOOLS, '@types');
  const preamble = "import { NextHop } from 'next-hop';\ndeclare const users: NextHop;\n";
  const files = examples('mjs').map((code, index) => {
    const name = `example-${index}.mts`;
    writeFileSync(join(folder, name), code.includes('new NextHop') ? code : preamble + code);
    return name;
  });
  writeFileSync(
    join(folder, 'example.cts'),
    `${examples('mjs')[0]?.split('\nconst response')[0]}\nusers.close();\n`,
  );
  const compilerOptions = {
    module: 'nodenext',
    target: 'es2023',
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    typeRoots: [types],
    types: ['node'],
  };
  const config = { compilerOptions, files: [...files, 'example.cts'] };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
  expect(await run(process.execPath, join(TOOLS, 'typescript/lib/tsc.js'), '-p', folder)).toBe('');
}, 60_000);

test.each(RUNS)('the first example of the README works on Node %i as %s', async (node, system) => {
  const file = `ten-lines-${node}.${system}`;
  writeFileSync(join(folder, file), examples(system)[0] ?? '');
  expect(await run(NODES[node], '--import', './users.mjs', file)).toBe("{ name: 'Ada' }\n201 created\n");
});

test.each([22, 24] as const)('both module systems have the same classes on Node %i', async (node) => {
  expect(await run(NODES[node], 'same-classes.mjs')).toBe('same\n');
});

describe.each([22, 24] as const)('on Node %i', (node) => {
  test('the global fetch resolves to the response when one replica closes connections', async () => {
    expect(await run(NODES[node], 'global-fetch.mjs')).toBe(
      '200, ejected: 127.0.0.1\nPOST body\nconnection_refused\n',
    );
  });

  test('from the first failure on, V8 reports at most 6 deoptimizations with warmUp (median of three runs), and more than 20 without (maximum of three runs)', async () => {
    const countsOfThreeRuns = async (mode: 'cold' | 'warm') => {
      const counts: number[] = [];
      while (counts.length < 3) {
        const output = await run(NODES[node], '--trace-deopt', 'first-failure.mjs', mode);
        const [, afterFailure] = output.split('first failure\n');
        if (afterFailure === undefined) throw new Error('The program did not print "first failure".');
        counts.push(afterFailure.match(/^\[(bailout|marking dependent code)/gm)?.length ?? 0);
      }
      return counts.sort((a, b) => a - b);
    };
    // The median, because V8 does not optimize the same functions in every run.
    const [, medianWithWarmUp] = await countsOfThreeRuns('warm');
    expect(medianWithWarmUp).toBeLessThanOrEqual(6);
    // The maximum, because on a busy machine, a slow response can trigger deoptimizations before the first failure,
    // where they are not counted.
    const maxWithoutWarmUp = (await countsOfThreeRuns('cold')).at(-1);
    expect(maxWithoutWarmUp).toBeGreaterThan(20);
  }, 60_000);

  test('@fastify/reply-from forwards requests and bodies through NextHop', async () => {
    expect(await run(NODES[node], 'reply-from.mjs')).toBe('200 GET /a \n200 POST /b body\n');
  });

  test('openapi-fetch sends its requests through NextHop', async () => {
    expect(await run(NODES[node], 'openapi-fetch.mjs')).toBe(
      "200 { name: 'Ada' }\n404 { title: 'Not found' }\n",
    );
  });
});
