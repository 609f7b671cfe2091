import { readFileSync } from 'node:fs';

const read = (file: string) => JSON.parse(readFileSync(file, 'utf8'));

interface LockedPackage {
  hasInstallScript?: boolean;
}

test('every locked package with an install script is allowed or denied in package.json', () => {
  const locked = Object.entries(read('package-lock.json').packages as Record<string, LockedPackage>);
  const names = locked
    .filter(([, { hasInstallScript }]) => hasInstallScript)
    .map(([path]) => path.split('node_modules/').at(-1));
  expect(Object.keys(read('package.json').allowScripts).sort()).toEqual(names.sort());
});
