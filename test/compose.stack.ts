import { request } from 'undici';
import { isolationTests } from './isolation';
import { docker, Stack } from './stack';

const stack = new Stack('onehop-test', 18_080);

beforeAll(async () => {
  await stack.requireEngine();
  await stack.down();
}, 60_000);

afterAll(() => stack.down(), 60_000);

async function hello() {
  const startedMs = performance.now();
  const { statusCode, headers, body } = await request(`${stack.url}/hello`);
  return { status: statusCode, text: await body.text(), headers, ms: performance.now() - startedMs };
}

async function waitForStatus(status: number, withinMs: number) {
  const deadlineMs = performance.now() + withinMs;
  let last = await hello();
  while (last.status !== status && performance.now() < deadlineMs) last = await hello();
  expect(last.status).toBe(status);
}

test('api responds 500 before api2 exists', async () => {
  await stack.compose('up', '--build', '--detach', '--wait', 'api');
  expect(await hello()).toMatchObject({ status: 500, text: 'Internal error contacting api2' });
}, 300_000);

test('the stack becomes healthy and /hello returns 200', async () => {
  await stack.compose('up', '--build', '--detach', '--wait');
  await waitForStatus(200, 3000);
  const response = await hello();
  expect(response).toMatchObject({ status: 200, text: 'Hello World!' });
  expect(response.headers['x-request-id']).toMatch(/^[\w.-]+$/);
}, 60_000);

test('/hello returns 500 within the deadline while api2 is stopped, and 200 after it starts again', async () => {
  await stack.compose('stop', 'api2');
  const whileStopped = await hello();
  expect(whileStopped).toMatchObject({ status: 500, text: 'Internal error contacting api2' });
  expect(whileStopped.ms).toBeLessThan(2500);
  await stack.compose('up', '--detach', '--wait', 'api2');
  await waitForStatus(200, 3000);
}, 60_000);

async function addBook(title: string) {
  const { statusCode, body } = await request(`${stack.url}/books`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ title, author: 'a' }),
  });
  await body.dump();
  return statusCode;
}

async function titles() {
  const { body } = await request(`${stack.url}/books?limit=100`);
  const { items } = (await body.json()) as { items: { title: string }[] };
  return items.map(({ title }) => title);
}

test('books survive docker compose down and up', async () => {
  expect(await addBook('stored')).toBe(201);
  await stack.compose('down', '--timeout', '15');
  await stack.compose('up', '--detach', '--wait');
  await waitForStatus(200, 3000);
  expect(await titles()).toEqual(['stored']);
}, 60_000);

test('three replicas of api2 share one database', async () => {
  await stack.compose('up', '--detach', '--wait', '--scale', 'api2=3');
  await new Promise((resolve) => setTimeout(resolve, 2500));
  const added = Array.from({ length: 60 }, (_, i) => `volume ${i}`);
  expect(await Promise.all(added.map(addBook))).toEqual(added.map(() => 201));
  for (let i = 0; i < 6; i++) expect((await titles()).sort()).toEqual(['stored', ...added].sort());
  await stack.compose('up', '--detach', '--wait', '--scale', 'api2=1');
}, 60_000);

test('the fault command in the api2 container sets, shows and clears a fault that /hello reports', async () => {
  const fault = (...args: string[]) =>
    stack.compose('exec', '-T', 'api2', '/nodejs/bin/node', 'services/api2/fault-command.js', ...args);
  expect(JSON.parse(await fault('status', 'status=418', 'seconds=30'))).toMatchObject({
    kind: 'status',
    status: 418,
  });
  expect(await hello()).toMatchObject({ status: 500, text: 'Error from api2: 418' });
  expect(JSON.parse(await fault())).toMatchObject({ kind: 'status', status: 418 });
  await expect(fault('status', 'status=99')).rejects.toMatchObject({
    stderr: expect.stringContaining('/status'),
  });
  expect(await fault('off')).toBe('{}');
  expect(await hello()).toMatchObject({ status: 200 });
}, 60_000);

test('only api publishes a port, and only on the loopback interface', async () => {
  const [api] = await stack.containers('api');
  const [api2] = await stack.containers('api2');
  expect(await docker('port', String(api))).toBe('8080/tcp -> 127.0.0.1:18080');
  expect(await docker('port', String(api2))).toBe('');
});

isolationTests(stack);

test('both containers have a read-only root file system, no capabilities and resource limits; only the data volume is writable', async () => {
  for (const service of ['api', 'api2']) {
    const [container] = await stack.containers(service);
    const { HostConfig } = JSON.parse(await docker('inspect', '--format', '{{json .}}', String(container)));
    expect(HostConfig).toMatchObject({
      ReadonlyRootfs: true,
      CapDrop: ['ALL'],
      SecurityOpt: ['no-new-privileges:true'],
      Memory: 256 * 1024 * 1024,
      PidsLimit: 100,
      RestartPolicy: { Name: 'unless-stopped' },
    });
  }
  const tryToWrite = (path: string) =>
    `try { fs.writeFileSync('${path}', ''); console.log('written') } catch ({ code }) { console.log(code) }`;
  const [api2] = await stack.containers('api2');
  const execInApi2 = ['exec', String(api2), '/nodejs/bin/node', '-e'];
  expect(await docker(...execInApi2, tryToWrite('/data/try'))).toBe('written');
  expect(await docker(...execInApi2, tryToWrite('/app/try'))).toBe('EROFS');
});

test('both containers run node as PID 1 and as a non-root user, and exit 0 on docker compose stop', async () => {
  const containers = [...(await stack.containers('api')), ...(await stack.containers('api2'))];
  for (const container of containers) {
    expect(await docker('exec', container, '/nodejs/bin/node', '-p', 'process.getuid()')).toBe('65532');
  }
  await stack.compose('stop');
  for (const container of containers) {
    expect(await docker('inspect', '--format', '{{.State.ExitCode}} {{.Config.Entrypoint}}', container)).toBe(
      '0 [/nodejs/bin/node]',
    );
  }
}, 60_000);
