import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { request } from 'undici';
import { freePorts, ProjectCopy, untilServed } from './project-copy';

const project = new ProjectCopy();

afterAll(() => project.remove());

test('npm run dev serves edits of a service and of the page within seconds, and ends on SIGTERM', async () => {
  const [port, adminPort, port2, adminPort2] = (await freePorts(4)) as [string, string, string, string];
  // The ports of api2 are fixed in the script. The copy has others, because a stack may be running here.
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
    await untilServed(`${url}/hello`, 'Hello World!', 20_000);
    for (const path of project.edit('edited')) await untilServed(url + path, 'edited', 10_000);
  } finally {
    dev.kill('SIGTERM');
    await exited;
  }
  await expect(request(url)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
}, 80_000);
