export type { CircuitState } from './circuit-breaker';
export { type Lookup, lookUpAll } from './endpoint-pool';
export { NextHopError, type NextHopErrorCode } from './errors';
export type { AbortSignalLike } from './get';
export type { ExchangeOptions, NextHopRequestOptions } from './hop';
export { type GetOptions, NextHop, type NextHopOptions } from './next-hop';
export type { AttemptInfo, AttemptOutcome, ExchangeInfo, Observer } from './observer';
export { WholeResponse } from './response';
export { warmUp } from './warm-up';
