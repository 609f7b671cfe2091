import type { Config } from 'jest';

const config: Config = {
  roots: ['<rootDir>/chassis', '<rootDir>/services', '<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  transform: { '\\.ts$': ['ts-jest', { diagnostics: false }] },
  testTimeout: 20_000,
  // They wait more than they work: jest's own choice, a worker for each core but one, takes twice as long.
  maxWorkers: 2,
};

export default config;
