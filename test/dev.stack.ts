import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { request } from 'undici';
import { freePorts, ProjectCopy, waitUntilServed } from './project-copy';

const project = new ProjectCopy();

afterAll(() => project.remove());

test('npm run dev serves edits of a service and of the page within 10 s, and exits on SIGTERM', async () => {
  const [port, adminPort, port2, adminPort2] = (await freePorts(4)) as [string, string, string, string];
  // The script has fixed ports for api2. The copy uses free ones, because the original may be running on this machine.
  project.replace('package.json', '8081', port2);
  project.replace('package.json', '9091', adminPort2);
  const dev = spawn('npm', ['run', '-s', 'dev'], {
    cwd: project.folder,
    env: { ...process.env, HOST: '127.0.0.1', PORT: port, ADMIN_PORT: adminPort },
    stdio: 'ignore',
  });
  const exited = once(dev, 'exit');
  const url = `http://127.0.0.1:${port}`;
  try {
    await waitUntilServed(`${url}/hello`, 'Hello World!', 20_000);
    for (const path of project.edit('edited')) await waitUntilServed(url + path, 'edited', 10_000);
  } finally {
    dev.kill('SIGTERM');
    await exited;
  }
  await expect(request(url)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
}, 80_000);
