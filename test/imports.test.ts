import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const FOLDERS = ['packages', 'contract', 'chassis', 'services'];
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  'packages/next-hop': [],
  contract: [],
  'chassis/http': ['packages/next-hop'],
  'chassis/telemetry': ['packages/next-hop', 'chassis/http', 'chassis'],
  chassis: ['packages/next-hop', 'chassis/http', 'chassis/telemetry'],
  'services/api': ['packages/next-hop', 'contract', 'chassis', 'chassis/http', 'chassis/telemetry'],
  'services/api2': ['contract', 'chassis', 'chassis/http', 'chassis/telemetry'],
};

const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', ...FOLDERS], {
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => /\.ts$/.test(file) && !/\.test\.ts$|\/test\/|\.d\.ts$/.test(file) && existsSync(file));

/** The project's files that a file imports, `import type` and `require` included. */
function importsOf(file: string): string[] {
  const specifiers = [
    ...readFileSync(file, 'utf8').matchAll(/(?:from|import|import\(|require\()\s*'([^']+)'/g),
  ];
  return specifiers.flatMap(([, specifier = '']) => {
    if (specifier === 'next-hop') return ['packages/next-hop/src/index.ts'];
    if (!specifier.startsWith('.')) return [];
    const path = join(dirname(file), specifier);
    return [path, `${path}.ts`, path.replace(/\.js$/, '.ts')].filter((candidate) =>
      files.includes(candidate),
    );
  });
}

function folderOf(file: string): string {
  return Object.keys(MAY_IMPORT)
    .filter((folder) => file.startsWith(`${folder}/`))
    .sort((a, b) => b.length - a.length)[0] as string;
}

test('every file is in a known folder and imports only from the folders that it may', () => {
  expect(files.length).toBeGreaterThan(50);
  const wrong = files.flatMap((file) =>
    importsOf(file)
      .filter((imported) => folderOf(imported) !== folderOf(file))
      .filter((imported) => !MAY_IMPORT[folderOf(file)]?.includes(folderOf(imported)))
      .map((imported) => `${file} imports ${imported}`),
  );
  expect(wrong).toEqual([]);
});

test('there are no import cycles', () => {
  const cycles: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: string[]) => {
    if (path.includes(file)) cycles.push([...path.slice(path.indexOf(file)), file].join(' → '));
    if (path.includes(file) || done.has(file)) return;
    for (const imported of importsOf(file)) visit(imported, [...path, file]);
    done.add(file);
  };
  for (const file of files) visit(file, []);
  expect(cycles).toEqual([]);
});
