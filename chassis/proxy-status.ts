import type { Answer } from './next-hop/answer';
import type { HopFailure } from './next-hop/failure';

/** The value of `Proxy-Status` (RFC 9209) where `service` got no usable answer. */
export function statusOfFailure(service: string, { type, nextHop }: HopFailure) {
  return `${service}; error=${type}; next-hop=${nextHop}`;
}

/** The value of `Proxy-Status` where the next hop did answer, but not with what `service` can use. */
export function statusOfAnswer(service: string, nextHop: string, { status }: Answer) {
  return `${service}; received-status=${status}; next-hop=${nextHop}`;
}
