import type { LookupAddress } from 'node:dns';
import { lookup as systemLookup } from 'node:dns/promises';
import type { Dispatcher } from 'undici';
import { Address } from './address';

export type Lookup = (hostname: string) => Promise<readonly LookupAddress[]>;

const LOOKUP_EVERY_MS = 2000;
const LOOKUP_AGAIN_AFTER_MS = 250;
const LOOKUP_HANGS_AFTER_MS = 1000;

export interface AddressesOptions {
  hostname: string;
  /** The most connections, all addresses together. */
  connections: number;
  /** A dispatcher over at most `connections` to one address, none opened before it is needed. */
  open: (address: LookupAddress, connections: number) => Dispatcher;
  lookup?: Lookup | undefined;
  lookupEveryMs?: number | undefined;
}

/**
 * The addresses that a host name has now, each with connections of its own, and the choice among
 * them. The name is looked up every few seconds, and at once when a connection fails.
 */
export class Addresses {
  private known: Address[] = [];
  private turn = 0;
  private lookups = 0;
  private applied = 0;
  private lastLookupMs = Number.NEGATIVE_INFINITY;
  private current: Promise<void> | undefined;
  private readonly timer: NodeJS.Timeout;

  constructor(private readonly options: AddressesOptions) {
    const { lookupEveryMs = LOOKUP_EVERY_MS } = options;
    this.timer = setInterval(() => this.refresh(), lookupEveryMs).unref();
    this.refresh();
  }

  /**
   * The address for the next request: the one with the fewest in flight, in turn among equals;
   * `avoid` and ejected addresses only if there is no other.
   * Undefined while the name has no known address.
   */
  choose(avoid?: Address): Address | undefined {
    const { known } = this;
    let best: Address | undefined;
    this.turn = this.turn + 1 < known.length ? this.turn + 1 : 0;
    for (let i = 0; i < known.length; i++) {
      const candidate = known[(this.turn + i) % known.length] as Address;
      if (best === undefined || precedes(candidate, best, avoid)) best = candidate;
    }
    return best;
  }

  /** An ejected address that is due for a probe. While all are ejected, all are used, and need none. */
  dueForProbe(nowMs: number): Address | undefined {
    const due = this.known.find((address) => address.isDueForProbe(nowMs));
    return due !== undefined && this.known.some((address) => !address.isEjected) ? due : undefined;
  }

  /**
   * Looks the name up, or joins a look-up under way; what it answers replaces the known addresses, a
   * failure leaves them. The promise rejects with the resolver's error.
   */
  lookup(): Promise<void> {
    const nowMs = performance.now();
    // A resolver may hang for many seconds; a name that came back meanwhile is not to wait for it.
    if (this.current !== undefined && nowMs - this.lastLookupMs < LOOKUP_HANGS_AFTER_MS) return this.current;
    this.lastLookupMs = nowMs;
    const lookup = this.resolve(++this.lookups).finally(() => {
      if (this.current === lookup) this.current = undefined;
    });
    this.current = lookup;
    return lookup;
  }

  /** Looks the name up in the background, for the next request. */
  refresh() {
    if (this.current === undefined && performance.now() - this.lastLookupMs < LOOKUP_AGAIN_AFTER_MS) return;
    // A failure is told to the request that needs an address; those that have one go on with it.
    this.lookup().catch(() => {});
  }

  /** How many connections are open, all addresses together. */
  get connections() {
    return this.known.reduce((sum, address) => sum + address.openConnections, 0);
  }

  /** Closes idle connections now, others when their request ends. */
  async close() {
    clearInterval(this.timer);
    this.applied = Number.POSITIVE_INFINITY;
    await Promise.all(this.known.map((address) => address.close()));
  }

  private async resolve(number: number) {
    const { hostname, lookup = lookUpAll } = this.options;
    const found = await lookup(hostname);
    if (number < this.applied) return;
    this.applied = number;
    this.replace(found);
  }

  private replace(found: readonly LookupAddress[]) {
    const unique = [...new Map(found.map((address) => [address.address, address])).values()];
    const used = unique.slice(0, this.options.connections);
    const share = Math.max(1, Math.floor(this.options.connections / used.length));
    const before = new Map(this.known.map((address) => [address.ip, address]));
    this.known = used.map((address) => this.keepOrOpen(before.get(address.address), address, share));
    const kept = new Set(this.known);
    for (const address of before.values()) if (!kept.has(address)) void address.close();
  }

  private keepOrOpen(before: Address | undefined, found: LookupAddress, share: number) {
    if (before?.share === share) return before;
    return new Address(found.address, share, (connections) => this.options.open(found, connections), before);
  }
}

/** All addresses of a host name. The host name of a URL has brackets around an IPv6 address. */
export async function lookUpAll(hostname: string): Promise<LookupAddress[]> {
  return systemLookup(hostname.replace(/^\[|\]$/g, ''), { all: true });
}

function precedes(candidate: Address, best: Address, avoid: Address | undefined) {
  const rank = Number(candidate.isEjected) * 2 + Number(candidate === avoid);
  const bestRank = Number(best.isEjected) * 2 + Number(best === avoid);
  return rank === bestRank ? candidate.inFlight < best.inFlight : rank < bestRank;
}
