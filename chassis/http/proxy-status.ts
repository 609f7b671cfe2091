import type { NextHopError } from 'next-hop';

/** Returns the value of `Proxy-Status` (RFC 9209) for a request to which `service` got no usable response. */
export function proxyStatusOfError(service: string, { code, nextHop }: NextHopError) {
  return `${service}; error=${code}; next-hop=${nextHop}`;
}

/** Returns the value of `Proxy-Status` for a response whose status `service` cannot use. */
export function proxyStatusOfResponse(service: string, nextHop: string, statusCode: number) {
  return `${service}; received-status=${statusCode}; next-hop=${nextHop}`;
}
