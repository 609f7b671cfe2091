import type { RequestHandler, Response } from 'express';
import { NextHopError, type WholeResponse } from 'next-hop';
import { Problem } from '../../chassis/http/problem';
import { proxyStatusOfResponse } from '../../chassis/http/proxy-status';
import { send } from '../../chassis/http/send';
import type { Logger } from '../../chassis/telemetry/logger';
import type { Get } from './next-hops/coalesced-get';
import { ResponseCache, type StoredResponse } from './response-cache';

const MAX_LOGGED_BYTES = 1000;
const HEADERS = ['accept', 'application/json', 'accept-encoding', 'identity'];

/** The response of `/data`. `cacheStatus` is its `Cache-Status` (RFC 9211) without the cache name. */
interface RelayedResponse {
  body: Buffer;
  cacheStatus: string;
  /** The age of a cached response, in seconds. */
  age?: number;
}

/** Relays the JSON at `path` of an external API, through a shared cache as far as its headers allow. */
export function data(get: Get, path: string, log: Logger): RequestHandler {
  const relay = new Relay(get, path);
  return async function data(_req, res) {
    const relayed = await relay.read(res);
    if (log.isLevelEnabled('debug')) log.debug({ data: truncate(relayed.body) }, 'data relayed');
    sendRelayed(res, relayed);
  };
}

class Relay {
  private readonly cache = new ResponseCache();
  // Requests that share a response share its outcome, so that it is validated and stored once.
  private readonly outcomes = new WeakMap<WholeResponse, RelayedResponse | Problem>();
  private fetching = 0;

  /** @param get must coalesce: requests that arrive during a fetch share it */
  constructor(
    private readonly get: Get,
    private readonly path: string,
  ) {}

  async read(res: Response): Promise<RelayedResponse> {
    const { stored } = this.cache;
    if (stored?.isFresh) return fromCache(stored, 'hit');
    const isCollapsed = this.fetching > 0;
    const relayed = await this.fetch(res, stored);
    return isCollapsed ? { ...relayed, cacheStatus: `${relayed.cacheStatus}; collapsed` } : relayed;
  }

  // Only the end of a fetch replaces the stored response, so all requests that share a fetch have the same stored
  // response and conditional headers.
  private async fetch(res: Response, stored: StoredResponse | undefined): Promise<RelayedResponse> {
    const response = await this.request(res, stored);
    if (response instanceof NextHopError)
      return fromCache(stored as StoredResponse, `fwd=stale; detail=${response.code}`);
    const outcome = this.outcomes.get(response) ?? this.outcomeOf(response, stored);
    this.outcomes.set(response, outcome);
    if (outcome instanceof Problem) throw outcome;
    return outcome;
  }

  /** Resolves to an error only if the stored response may be served instead. */
  private async request(
    res: Response,
    stored: StoredResponse | undefined,
  ): Promise<WholeResponse | NextHopError> {
    const headers = [...HEADERS, ...(stored?.conditionalHeaders ?? [])];
    this.fetching++;
    try {
      return await this.get(this.path, headers, res.locals.record);
    } catch (error) {
      if (error instanceof NextHopError && stored?.canBeServedOnError) return error;
      throw error;
    } finally {
      this.fetching--;
    }
  }

  private outcomeOf(response: WholeResponse, stored: StoredResponse | undefined): RelayedResponse | Problem {
    if (response.statusCode === 304 && stored)
      return fromCache(this.cache.refresh(stored, response), 'fwd=stale; fwd-status=304');
    if (response.statusCode >= 500 && stored?.canBeServedOnError)
      return fromCache(stored, `fwd=stale; fwd-status=${response.statusCode}`);
    if (!response.ok) return this.unexpectedResponse('status', response);
    if (!isJson(response)) return this.unexpectedResponse('content', response);
    this.cache.store(response);
    return {
      body: response.body(),
      cacheStatus: `fwd=${stored ? 'stale' : 'uri-miss'}; fwd-status=${response.statusCode}`,
    };
  }

  private unexpectedResponse(aspect: 'status' | 'content', response: WholeResponse) {
    return new Problem(502, `unexpected_${aspect}`, {
      detail: `The external API responded with an unexpected ${aspect}.`,
      headers: { 'proxy-status': proxyStatusOfResponse('api', 'external', response.statusCode) },
      cause: new Error(
        `status ${response.statusCode}, content-type ${response.headers['content-type'] ?? 'missing'}`,
      ),
    });
  }
}

function fromCache(stored: StoredResponse, cacheStatus: string): RelayedResponse {
  return { body: stored.body, age: stored.age, cacheStatus };
}

function isJson(response: WholeResponse) {
  if (!/^\s*application\/([\w.+-]+\+)?json\s*(;|$)/i.test(response.headers['content-type'] ?? ''))
    return false;
  try {
    JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(response.body()));
    return true;
  } catch {
    return false;
  }
}

function sendRelayed(res: Response, { body, cacheStatus, age }: RelayedResponse) {
  res.setHeader('cache-status', `api; ${cacheStatus}`);
  if (age !== undefined) res.setHeader('age', age);
  res.locals.record.setTimingHeaders();
  send(res, 200, 'application/json', body);
}

// With `stream`, the decoder omits an incomplete character at the end.
function truncate(body: Buffer) {
  return new TextDecoder().decode(body.subarray(0, MAX_LOGGED_BYTES), { stream: true });
}
