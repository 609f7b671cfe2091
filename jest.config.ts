import type { Config } from 'jest';

const config: Config = {
  roots: ['<rootDir>/chassis', '<rootDir>/services', '<rootDir>/test'],
  testMatch: ['**/*.test.ts'],
  transform: { '\\.ts$': ['ts-jest', { diagnostics: false }] },
  testTimeout: 20_000,
};

export default config;
