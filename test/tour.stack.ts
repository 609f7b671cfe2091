import { Stack } from './stack';
import { startTour, stepsIn } from './tour';

const PORT = 18_170;
const stack = new Stack('onehop-tour-test', PORT);

beforeAll(async () => {
  await stack.requireEngine();
  await stack.down();
  await stack.compose('up', '--build', '--detach', '--wait');
}, 300_000);

afterAll(() => stack.down(), 60_000);

test('npm run tour finds the Docker stack, restarts, kills and freezes replicas without a failed request, and restores their number', async () => {
  const env = { COMPOSE_PROJECT_NAME: stack.project, ONEHOP_PUBLISH: `127.0.0.1:${PORT}` };
  const { code, stdout, stderr } = await startTour(['--yes'], env).ended;
  expect({ code, stderr, notShown: /NOT SHOWN.*/.exec(stdout)?.[0] }).toEqual({ code: 0, stderr: '' });
  expect(stdout).toContain(`the services of Docker Compose at ${stack.url}.`);
  const steps = stepsIn(stdout);
  expect(steps.map(({ statuses, logLines }) => [statuses, logLines.api])).toEqual([
    [[200], 1],
    [[200], 1],
    [[200], 1],
    [[500], 1],
    [[500, 200], 1],
    [[201, 200, 412, 204], 1],
    [[200], 1],
    [[200], 1],
    [[200], 1],
    [[200], 1],
  ]);
  // A probe of an ejected replica may add a line in the last four steps.
  expect(steps.slice(0, 6).map(({ logLines }) => logLines.api2)).toEqual([1, 2, 2, 2, 0, 1]);
  for (const { logLines } of steps.slice(6)) expect(logLines.api2).toBeGreaterThanOrEqual(1);
  for (const { changes } of steps) {
    expect(changes.length).toBeGreaterThan(0);
    for (const change of changes) expect(change).toBeGreaterThan(0);
  }
  const [scale, ...disturbances] = steps.slice(6).map(({ text }) => text);
  expect(scale?.match(/\d+ replica=\d+/g)).toHaveLength(3);
  const counts = disturbances.map((text) => /^ +(\d+) 200$/m.exec(text)?.[1]);
  expect(counts).toEqual(['3000', '3000', '1000']);
  expect(await stack.containers('api2')).toHaveLength(1);
}, 150_000);
