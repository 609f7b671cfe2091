import type { RequestHandler, Response } from 'express';
import { AnswerCache, type Stored } from '../../chassis/answer-cache';
import type { Logger } from '../../chassis/logger';
import type { Answer } from '../../chassis/next-hop/answer';
import type { NextHop } from '../../chassis/next-hop/client';
import { HopFailure } from '../../chassis/next-hop/failure';
import { Problem } from '../../chassis/problem';
import { statusOfAnswer } from '../../chassis/proxy-status';
import { send } from '../../chassis/send';

const MOST_LOGGED_BYTES = 1000;
const HEADERS = ['accept', 'application/json', 'accept-encoding', 'identity'];

/** What is relayed, and what `Cache-Status` (RFC 9211) says of it. */
interface Relayed {
  body: Buffer;
  cacheStatus: string;
  /** In seconds, of what comes out of the cache. */
  age?: number;
}

/** Relays the JSON at `path` of an external API, from a shared cache where its headers allow that. */
export function data(external: NextHop, path: string, log: Logger): RequestHandler {
  const relay = new Relay(external, path);
  return async function data(_req, res) {
    const relayed = await relay.read(res);
    if (log.isLevelEnabled('debug')) log.debug({ data: beginOf(relayed.body) }, 'data relayed');
    sendRelayed(res, relayed);
  };
}

class Relay {
  private readonly cache = new AnswerCache();
  // Requests that share a response share its outcome too: it is validated and stored once.
  private readonly outcomes = new WeakMap<Answer, Relayed | Problem>();
  private fetching = 0;

  /** @param external must have `collapse` enabled: requests that arrive during a fetch share it */
  constructor(
    private readonly external: NextHop,
    private readonly path: string,
  ) {}

  async read(res: Response): Promise<Relayed> {
    const { stored } = this.cache;
    if (stored?.isFresh) return fromCache(stored, 'hit');
    const isCollapsed = this.fetching > 0;
    const relayed = await this.fetch(res, stored);
    return isCollapsed ? { ...relayed, cacheStatus: `${relayed.cacheStatus}; collapsed` } : relayed;
  }

  // Only the end of a fetch replaces the stored response, so all requests that share a fetch have the same stored
  // response and conditional headers.
  private async fetch(res: Response, stored: Stored | undefined): Promise<Relayed> {
    const answer = await this.ask(res, stored);
    if (answer instanceof HopFailure) return fromCache(stored as Stored, `fwd=stale; detail=${answer.type}`);
    const outcome = this.outcomes.get(answer) ?? this.outcomeOf(answer, stored);
    this.outcomes.set(answer, outcome);
    if (outcome instanceof Problem) throw outcome;
    return outcome;
  }

  /** Resolves to a failure only where what is stored may be served in its place. */
  private async ask(res: Response, stored: Stored | undefined): Promise<Answer | HopFailure> {
    const headers = [...HEADERS, ...(stored?.conditions ?? [])];
    this.fetching++;
    try {
      return await this.external.get(this.path, res.locals.record, headers);
    } catch (error) {
      if (error instanceof HopFailure && stored?.servesErrors) return error;
      throw error;
    } finally {
      this.fetching--;
    }
  }

  private outcomeOf(answer: Answer, stored: Stored | undefined): Relayed | Problem {
    if (answer.status === 304 && stored)
      return fromCache(this.cache.confirm(stored, answer), 'fwd=stale; fwd-status=304');
    if (answer.status >= 500 && stored?.servesErrors)
      return fromCache(stored, `fwd=stale; fwd-status=${answer.status}`);
    if (!answer.isSuccess) return this.unexpected('status', answer);
    if (!isJson(answer)) return this.unexpected('content', answer);
    this.cache.store(answer);
    return {
      body: answer.body(),
      cacheStatus: `fwd=${stored ? 'stale' : 'uri-miss'}; fwd-status=${answer.status}`,
    };
  }

  private unexpected(what: 'status' | 'content', answer: Answer) {
    return new Problem(502, `unexpected_${what}`, {
      detail: `The external API answered with an unexpected ${what}.`,
      headers: { 'proxy-status': statusOfAnswer('api', this.external.name, answer) },
      cause: new Error(`${answer.status}, ${answer.headers['content-type'] ?? 'no content-type'}`),
    });
  }
}

function fromCache(stored: Stored, cacheStatus: string): Relayed {
  return { body: stored.body, age: stored.age, cacheStatus };
}

function isJson(answer: Answer) {
  if (!/^\s*application\/([\w.+-]+\+)?json\s*(;|$)/i.test(answer.headers['content-type'] ?? '')) return false;
  try {
    JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(answer.body()));
    return true;
  } catch {
    return false;
  }
}

function sendRelayed(res: Response, { body, cacheStatus, age }: Relayed) {
  res.setHeader('cache-status', `api; ${cacheStatus}`);
  if (age !== undefined) res.setHeader('age', age);
  res.setHeader('server-timing', res.locals.record.serverTiming());
  send(res, 200, 'application/json', body);
}

// As a stream, the decoder leaves out a character that is cut through.
function beginOf(body: Buffer) {
  return new TextDecoder().decode(body.subarray(0, MOST_LOGGED_BYTES), { stream: true });
}
