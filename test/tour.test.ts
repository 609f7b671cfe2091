import { once } from 'node:events';
import { createWriteStream, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'undici';
import { programStarter } from './programs';
import { closedPort, httpUpstream } from './stub-upstream';
import { startTour, stepsIn } from './tour';

const startProgram = programStarter();
const TIMEOUT_MS = '1000';
const folder = mkdtempSync(join(tmpdir(), 'onehop-tour-'));

afterAll(() => rmSync(folder, { recursive: true }));

test('npm run tour with --yes and --start shows ten steps with their responses, log lines and metrics, and exits 0', async () => {
  const external = await httpUpstream((_req, res) => {
    res.setHeader('content-type', 'application/json').end('{"from":"the external API"}');
  });
  const env = { API2_TIMEOUT_MS: TIMEOUT_MS, EXTERNAL_URL: `${external.origin}/` };
  const { code, stdout, stderr } = await startTour(['--yes', '--start'], env).ended;
  await external.close();
  expect({ code, stderr, notShown: /NOT SHOWN.*/.exec(stdout)?.[0] }).toEqual({ code: 0, stderr: '' });
  const steps = stepsIn(stdout);
  expect(steps.map(({ statuses, logLines }) => [statuses, logLines.api, logLines.api2])).toEqual([
    [[200], 1, 1],
    [[500], 1, 1],
    [[200], 1, 2],
    [[200], 1, 2],
    [[500], 1, 2],
    [[500], 1, 1],
    [[500, 200], 1, 0],
    [[200], 1, 0],
    [[201, 201, 204], 1, 1],
    [[201, 200, 412, 204], 1, 1],
  ]);
  for (const { commands, changes } of steps) {
    expect(commands).toBeGreaterThan(0);
    expect(changes.length).toBeGreaterThan(0);
    for (const change of changes) expect(change).toBeGreaterThan(0);
  }
  const texts = steps.map(({ text }) => text);
  expect(texts[1]).toContain('Error from api2: 503');
  expect(texts[3]).toMatch(/api2\.1;dur=[\d.]+;desc="cancelled",\s+api2\.2;dur=[\d.]+;desc="ok"/);
  expect(texts[4]).toContain('error=http_response_timeout');
  expect(texts[6]).toMatch(/circuit_state\{next_hop="api2"\} 2\n.*circuit_state\{next_hop="api2"\} 0\n/s);
  expect(texts[7]).toContain('the external API');
  expect(stdout.split('\n').filter((line) => line.length > 80)).toEqual([]);
  // No colours, because the output is not a terminal.
  expect(stdout).not.toContain('\u001b');
}, 40_000);

test('with --url, the tour uses running services, and exits 1 if they do not do what it says', async () => {
  // This api2 ignores x-fault, so nothing fails, and no hedge is sent.
  const api2 = await startProgram('api2');
  const api = await startProgram('api', { API2_URL: api2.url, FAULTS: 'on' });
  const log = join(folder, 'services.log');
  const file = createWriteStream(log);
  for (const { child } of [api, api2]) child.stdout?.pipe(file, { end: false });
  const args = ['--yes', '--url', api.url, '--admin-url', api.adminUrl, '--log', log];
  const works = await startTour([...args, '--step', '1']).ended;
  expect(works).toMatchObject({ code: 0, stderr: '' });
  expect(stepsIn(works.stdout)).toMatchObject([{ statuses: [200], logLines: { api: 1, api2: 1 } }]);
  const fails = await startTour([...args, '--step', '4']).ended;
  expect(fails.code).toBe(1);
  expect(fails.stdout).toContain('NOT SHOWN: the second attempt was a hedge');
  expect(fails.stdout).toContain('NOT SHOWN: log lines: 1 of api, 2 of api2');
  expect(fails.stdout).toContain('NOT SHOWN: 0 → 0');
  expect(fails.stdout).toMatch(/\d of the tour's claims were not shown/);
  file.close();
});

describe('the tour exits 1 with one sentence', () => {
  const runWith = (...args: string[]) => startTour(['--yes', ...args]).ended;

  test('if api does not respond', async () => {
    const url = `http://127.0.0.1:${await closedPort()}`;
    const stderr = `api does not respond at ${url}.\n`;
    expect(await runWith('--url', url)).toEqual({ code: 1, stdout: '', stderr });
  });

  test('if api runs without FAULTS=on', async () => {
    const { url } = await startProgram('api');
    const stderr = expect.stringMatching(
      /^api at \S+ runs without fault injection: start it with `FAULTS=on npm start \| tee onehop\.log`\.\n$/,
    );
    expect(await runWith('--url', url)).toEqual({ code: 1, stdout: '', stderr });
  });

  test('if the log cannot be read', async () => {
    const { url, adminUrl } = await startProgram('api', { FAULTS: 'on' });
    const stderr = expect.stringMatching(/^the tour cannot read the log of api at .*tee onehop\.log`\.\n$/);
    const result = await runWith('--url', url, '--admin-url', adminUrl, '--log', join(folder, 'missing.log'));
    expect(result).toEqual({ code: 1, stdout: '', stderr });
  });
});

test('Enter shows the next step, and Ctrl-C during a pause stops the tour and the services that it has started', async () => {
  const { child, ended, stdout } = startTour(['--start']);
  const shown = async (text: string) => {
    while (!stdout().includes(text)) await once(child.stdout, 'data');
  };
  await shown('Press Enter');
  child.stdin.write('\n');
  await shown('ok: 0 → 1');
  const [, url] = /(http:\S+)\/hello/.exec(stdout()) as RegExpExecArray;
  child.kill('SIGINT');
  expect(await ended).toMatchObject({ code: 130, stderr: '' });
  expect(stdout()).toMatch(/\nStopped\.\n$/);
  await expect(request(String(url))).rejects.toMatchObject({ code: 'ECONNREFUSED' });
});

test('the tour stops the services that it has started when the reader of its output goes away', async () => {
  const { child, ended, stdout } = startTour(['--start', '--yes', '--step', '4']);
  while (!stdout().includes('$ curl')) await once(child.stdout, 'data');
  const [, url] = /(http:\S+)\/hello/.exec(stdout()) as RegExpExecArray;
  child.stdout.destroy();
  expect(await ended).toMatchObject({ code: 1, stderr: '' });
  await expect(request(String(url))).rejects.toMatchObject({ code: 'ECONNREFUSED' });
});
