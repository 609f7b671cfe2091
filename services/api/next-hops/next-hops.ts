import { NextHop } from 'next-hop';
import type { Logger } from '../../../chassis/telemetry/logger';
import type { Metrics } from '../../../chassis/telemetry/metrics';
import { nextHopObserver } from '../../../chassis/telemetry/next-hop-observer';
import type { RequestRecord } from '../../../chassis/telemetry/request-record';
import type { Settings } from '../settings';
import { fallbackLookup } from './fallback-lookup';
import { proxyFactory } from './proxy';

/** Creates the HTTP clients of the services that api calls. */
export function createNextHops(settings: Settings, log: Logger, metrics: Metrics) {
  const { api2Fallback: fallback } = settings;
  const onFallbackChange = (inUse: boolean) =>
    log.warn({ nextHop: 'api2', fallback, inUse }, 'fallback state changed');
  const api2 = new NextHop<RequestRecord>(settings.api2.origin, {
    ...settings.api2,
    name: 'api2',
    observer: nextHopObserver({ name: 'api2', log, metrics, showsReplicas: settings.faults }),
    ...(fallback && { lookup: fallbackLookup(fallback, onFallbackChange) }),
  });
  const factory = proxyFactory(settings.proxy);
  const external = new NextHop<RequestRecord>(settings.external.origin, {
    ...settings.external,
    name: 'external',
    observer: nextHopObserver({ name: 'external', log, metrics, isThirdParty: true }),
    ...(factory && { factory }),
  });
  for (const nextHop of [api2, external]) metrics.watch(nextHop);
  return { api2, external };
}
