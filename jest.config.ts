import type { Config } from 'jest';

const config: Config = {
  roots: [
    '<rootDir>/chassis',
    '<rootDir>/contract',
    '<rootDir>/packages',
    '<rootDir>/services',
    '<rootDir>/test',
  ],
  modulePathIgnorePatterns: ['<rootDir>/packages/[^/]+/dist'],
  moduleNameMapper: { '^next-hop$': '<rootDir>/packages/next-hop/src' },
  testMatch: ['**/*.test.ts'],
  transform: { '\\.ts$': ['ts-jest', { diagnostics: false }] },
  testTimeout: 60_000,
  // The tests mostly wait: on a machine with two cores, five workers are faster than one (the default, cores - 1).
  maxWorkers: 5,
};

export default config;
