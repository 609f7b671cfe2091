import { z } from 'zod';
import { type Env, onOff, readEnv, url } from '../../chassis/settings';

export type Settings = ReturnType<typeof readSettings>;

/**
 * The settings of api2 from an environment object.
 * @throws {SettingsError} naming every wrong variable
 */
export function readSettings(env: Env) {
  const { running, own } = readEnv(env, {
    GREETING: z.string().default('Hello World!'),
    DATABASE_FILE: z.string().default('data/books.db'),
    DATABASE_URL: url(['postgres:', 'postgresql:'], 'a URL such as postgres://user@host/database').optional(),
    FAULTS: onOff().default(false),
  });
  return {
    ...running,
    greeting: own.GREETING,
    databaseFile: own.DATABASE_FILE,
    databaseUrl: own.DATABASE_URL,
    faults: own.FAULTS,
  };
}
