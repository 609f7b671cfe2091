import { z } from 'zod';
import { type Env, faultsVariable, readEnv, url } from '../../chassis/settings';

export type Settings = ReturnType<typeof readSettings>;

/**
 * Reads the settings of api2 from an environment object.
 * @throws {SettingsError} that lists every invalid variable
 */
export function readSettings(env: Env) {
  const { shared, own } = readEnv(env, {
    GREETING: z.string().default('Hello World!'),
    DATABASE_FILE: z.string().default('data/books.db'),
    DATABASE_URL: url(['postgres:', 'postgresql:'], 'a URL such as postgres://user@host/database').optional(),
    ...faultsVariable,
  });
  return {
    ...shared,
    greeting: own.GREETING,
    databaseFile: own.DATABASE_FILE,
    databaseUrl: own.DATABASE_URL,
    faults: own.FAULTS,
  };
}
