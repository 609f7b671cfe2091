import type { IncomingHttpHeaders } from 'node:http';
import CachePolicy from 'http-cache-semantics';
import type { Answer } from './next-hop/answer';

const LONGEST_AGE_SECONDS = 24 * 60 * 60;

// Nothing of a client's decides what is asked for, so there is one request, and nothing to select by.
const REQUEST = { method: 'GET', headers: {} };
const OPTIONS = { shared: true, immutableMinTimeToLive: 0 };

type Headers = CachePolicy.Headers;

/** An answer that is kept. */
export class Stored {
  private readonly policy: CachePolicy;

  constructor(
    readonly body: Buffer,
    readonly headers: Headers,
  ) {
    this.policy = policyOf(headers);
  }

  /** Whole seconds since the origin made or confirmed it. */
  get age() {
    return Math.max(0, Math.floor(this.policy.age()));
  }

  get isToBeKept() {
    const { expires, vary, 'cache-control': control } = this.headers;
    const statesLifetime = expires !== undefined || /\b(s-maxage|max-age)=/.test(String(control));
    return statesLifetime && !String(vary).includes('*') && this.policy.storable();
  }

  get isFresh() {
    return !this.policy.stale();
  }

  /** May be served though it is stale, where there is nothing better (RFC 9111, section 4.2.4). */
  get servesErrors() {
    const control = String(this.headers['cache-control']);
    return !/must-revalidate|no-cache/.test(control) && this.age <= LONGEST_AGE_SECONDS;
  }

  /** The headers that ask whether it still holds, names and values in turn. */
  get conditions(): string[] {
    const { etag, 'last-modified': date } = this.headers;
    if (etag !== undefined) return ['if-none-match', String(etag)];
    return date === undefined ? [] : ['if-modified-since', String(date)];
  }
}

/**
 * The cache of one URL's answer, as a shared HTTP cache (RFC 9111) keeps it: for a stated lifetime
 * alone, nothing `no-store` or `private`.
 */
export class AnswerCache {
  stored: Stored | undefined;

  /** Keeps an answer in place of the one before, where its headers allow that. */
  store(answer: Answer) {
    return this.keep(new Stored(answer.body(), asOneLineEach(answer.headers)));
  }

  /** `stored` still holds, as a 304 says, and is as fresh as that makes it (RFC 9111, section 4.3.4). */
  confirm({ body, headers: { age: _, ...before } }: Stored, answer: Answer) {
    return this.keep(new Stored(body, { ...before, ...asOneLineEach(answer.headers) }));
  }

  private keep(stored: Stored) {
    this.stored = stored.isToBeKept ? stored : undefined;
    return stored;
  }
}

function policyOf(headers: Headers) {
  return new CachePolicy(REQUEST, { status: 200, headers }, OPTIONS);
}

// http-cache-semantics reads the directives' names as they are written, and one line of each header.
// To it, `proxy-revalidate` is no lifetime at all; it only forbids what `must-revalidate` forbids.
function asOneLineEach(headers: IncomingHttpHeaders): Headers {
  const lines = Object.entries(headers).map(([name, value]) => [name, String(value)]);
  const control = headers['cache-control']?.toLowerCase().replaceAll('proxy-revalidate', 'must-revalidate');
  return { ...Object.fromEntries(lines), ...(control === undefined ? {} : { 'cache-control': control }) };
}
