import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'undici';

const FILES = [
  '.dockerignore',
  '.npmrc',
  'Dockerfile',
  'docker-compose.yml',
  'docker-compose.watch.yml',
  'package.json',
  'package-lock.json',
  'tsconfig.json',
  'tsconfig.build.json',
  'chassis',
  'contract',
  'packages',
  'services',
];

/** A copy of the project in a temporary folder, for tests that edit its sources. */
export class ProjectCopy {
  readonly folder = mkdtempSync(join(tmpdir(), 'onehop-'));

  constructor() {
    for (const file of FILES) cpSync(file, join(this.folder, file), { recursive: true });
    symlinkSync(join(process.cwd(), 'node_modules'), join(this.folder, 'node_modules'));
  }

  /** Replaces every `text` in a file. @throws {Error} if there is none */
  replace(file: string, text: string | RegExp, by: string) {
    const path = join(this.folder, file);
    const before = readFileSync(path, 'utf8');
    const after = before.replaceAll(text, by);
    if (after === before) throw new Error(`${file} does not contain ${text}`);
    writeFileSync(path, after);
  }

  /** Edits one file of each kind that is reloaded, and returns the paths that must then serve the edits. */
  edit(mark: string) {
    this.replace(
      'services/api2/settings.ts',
      /default\('Hello World!.*'\)/g,
      `default('Hello World! ${mark}')`,
    );
    this.replace('services/api/page/index.html', '</body>', `<!-- ${mark} --></body>`);
    this.replace('services/api/page/page.css', /$/g, `/* ${mark} */`);
    this.replace('services/api/page/response.ts', /$/g, `export const ${mark} = '${mark}';\n`);
    return ['/hello', '/', '/page.css', '/response.js'];
  }

  remove() {
    rmSync(this.folder, { recursive: true });
  }
}

/** Resolves when `GET url` has a body that contains `text`, and rejects after `withinMs`. */
export async function waitUntilServed(url: string, text: string, withinMs: number) {
  const deadlineMs = performance.now() + withinMs;
  for (let last = ''; ; await new Promise((resolve) => setTimeout(resolve, 50))) {
    // While the service restarts, it refuses connections.
    last = await request(url).then(({ body }) => body.text(), String);
    if (last.includes(text)) return;
    if (performance.now() > deadlineMs)
      throw new Error(`${url} did not serve "${text}"; last response: ${last.slice(-500)}`);
  }
}

/** Resolves to loopback ports that are free now. */
export async function freePorts(count: number) {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => new Promise((resolve) => server.once('listening', resolve))));
  const ports = servers.map((server) => String((server.address() as { port: number }).port));
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}
