import type { IncomingHttpHeaders } from 'node:http';
import CachePolicy from 'http-cache-semantics';
import type { WholeResponse } from 'next-hop';

const MAX_AGE_SECONDS = 24 * 60 * 60;

// No client input affects the upstream request, so all requests are the same and no response varies between them.
const REQUEST = { method: 'GET', headers: {} };
const OPTIONS = { shared: true, immutableMinTimeToLive: 0 };

type Headers = CachePolicy.Headers;

/** A stored response. */
export class StoredResponse {
  private readonly policy: CachePolicy;

  constructor(
    readonly body: Buffer,
    readonly headers: Headers,
  ) {
    this.policy = policyOf(headers);
  }

  /** Whole seconds since the origin generated or revalidated the response. */
  get age() {
    return Math.max(0, Math.floor(this.policy.age()));
  }

  get isStorable() {
    const { expires, vary, 'cache-control': cacheControl } = this.headers;
    const hasExplicitLifetime = expires !== undefined || /\b(s-maxage|max-age)=/.test(String(cacheControl));
    return hasExplicitLifetime && !String(vary).includes('*') && this.policy.storable();
  }

  get isFresh() {
    return !this.policy.stale();
  }

  /** Whether the response may be served stale if a fetch fails (RFC 9111, section 4.2.4). */
  get canBeServedOnError() {
    const cacheControl = String(this.headers['cache-control']);
    return !/must-revalidate|no-cache/.test(cacheControl) && this.age <= MAX_AGE_SECONDS;
  }

  /** The headers of a revalidation request, as alternating names and values. */
  get conditionalHeaders(): string[] {
    const { etag, 'last-modified': date } = this.headers;
    if (etag !== undefined) return ['if-none-match', String(etag)];
    return date === undefined ? [] : ['if-modified-since', String(date)];
  }
}

/**
 * A shared HTTP cache (RFC 9111) for the response of one URL. It stores only responses with an explicit lifetime,
 * and none with `no-store` or `private`.
 */
export class ResponseCache {
  stored: StoredResponse | undefined;

  /** Replaces the stored response, or removes it if the headers of the new one do not allow caching. */
  store(response: WholeResponse) {
    return this.replace(new StoredResponse(response.body(), normalizeHeaders(response.headers)));
  }

  /** Updates the headers of `stored` from a 304, which makes it fresh again (RFC 9111, section 4.3.4). */
  refresh({ body, headers: { age: _, ...previous } }: StoredResponse, response: WholeResponse) {
    return this.replace(new StoredResponse(body, { ...previous, ...normalizeHeaders(response.headers) }));
  }

  private replace(stored: StoredResponse) {
    this.stored = stored.isStorable ? stored : undefined;
    return stored;
  }
}

function policyOf(headers: Headers) {
  return new CachePolicy(REQUEST, { status: 200, headers }, OPTIONS);
}

// http-cache-semantics compares directive names case-sensitively and expects one string per header. It treats
// `proxy-revalidate` as a lifetime of 0; in a shared cache the directive only means `must-revalidate`.
function normalizeHeaders(headers: IncomingHttpHeaders): Headers {
  const lines = Object.entries(headers).map(([name, value]) => [name, String(value)]);
  const cacheControl = headers['cache-control']
    ?.toLowerCase()
    .replaceAll('proxy-revalidate', 'must-revalidate');
  return {
    ...Object.fromEntries(lines),
    ...(cacheControl === undefined ? {} : { 'cache-control': cacheControl }),
  };
}
