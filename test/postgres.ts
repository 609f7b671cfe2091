import { execFileSync, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { appendFileSync, chownSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';
import { closedPort } from './stub-upstream';

const INSTALL_FOLDER = '/usr/lib/postgresql';

/**
 * A temporary PostgreSQL server on a loopback port and, if requested, on another address of this machine, where it
 * demands a password. `remove` deletes its data folder.
 */
export class Postgres {
  private server: ReturnType<typeof spawn> | undefined;

  private constructor(
    private readonly folder: string,
    readonly port: number,
    private readonly host: string | undefined,
  ) {}

  static async create(host?: string) {
    const folder = mkdtempSync(join(tmpdir(), 'onehop-postgres-'));
    const postgres = new Postgres(join(folder), await closedPort(), host);
    const { uid, gid } = owner();
    if (uid !== undefined && gid !== undefined) chownSync(folder, uid, gid);
    execFileSync(binary('initdb'), ['-D', folder, '-U', 'onehop', '-A', 'trust', '--no-sync'], {
      ...owner(),
      stdio: 'ignore',
    });
    if (host !== undefined) appendFileSync(join(folder, 'pg_hba.conf'), 'host all all all scram-sha-256\n');
    await postgres.start();
    return postgres;
  }

  /** Creates a database, and resolves to its URL at the address that `create` was called with. */
  async createRemoteDatabase(name: string) {
    const password = randomUUID();
    await this.query(`ALTER USER onehop PASSWORD '${password}'`);
    await this.query(`CREATE DATABASE ${name}`);
    return `postgres://onehop:${password}@${this.host}:${this.port}/${name}`;
  }

  url(database = 'postgres') {
    return `postgres://onehop@127.0.0.1:${this.port}/${database}`;
  }

  async start() {
    const addresses = ['127.0.0.1', this.host].filter(Boolean).join(',');
    const args = ['-D', this.folder, '-p', String(this.port), '-h', addresses, '-k', this.folder];
    this.server = spawn(binary('postgres'), args, { ...owner(), stdio: 'ignore' });
    for (let i = 0; i < 200; i++) {
      if (await this.query('SELECT 1').catch(() => undefined)) return;
      await sleep(50);
    }
    throw new Error('PostgreSQL did not start');
  }

  async query(sql: string, database = 'postgres') {
    const client = new Client({ connectionString: this.url(database) });
    await client.connect();
    try {
      return (await client.query(sql)).rows as Record<string, unknown>[];
    } finally {
      await client.end();
    }
  }

  /** Creates a database, and resolves to its URL. */
  async createDatabase(name: string) {
    await this.query(`CREATE DATABASE ${name}`);
    return this.url(name);
  }

  /** SIGQUIT is PostgreSQL's immediate shutdown, which resembles a crash. */
  async stop(signal: NodeJS.Signals = 'SIGQUIT') {
    const { server } = this;
    this.server = undefined;
    if (server === undefined) return;
    const closed = once(server, 'close');
    server.kill(signal);
    await closed;
  }

  async remove() {
    await this.stop();
    rmSync(this.folder, { recursive: true });
  }
}

function binary(name: string) {
  const [version] = readdirSync(INSTALL_FOLDER).sort((a, b) => Number(b) - Number(a));
  return join(INSTALL_FOLDER, String(version), 'bin', name);
}

// PostgreSQL refuses to run as root. Debian's package creates a user for it.
function owner(): { uid?: number; gid?: number } {
  if (process.getuid?.() !== 0) return {};
  const idOf = (flag: string) => Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }));
  return { uid: idOf('-u'), gid: idOf('-g') };
}
