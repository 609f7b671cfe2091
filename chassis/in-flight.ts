/** Something that knows its place among those in flight. */
export interface Placed {
  place: number;
}

/**
 * The requests in flight. An array, and not a `Set`: the tables that a busy `Set` leaves behind keep
 * ended requests alive through young garbage collections (docs/decisions/0004-in-flight.md).
 */
export class InFlight<Item extends Placed> {
  private readonly items: Item[] = [];

  get size() {
    return this.items.length;
  }

  add(item: Item) {
    item.place = this.items.length;
    this.items.push(item);
  }

  /** Takes an item out; the last one takes its place. */
  delete(item: Item) {
    const last = this.items.pop();
    if (last === undefined || last === item) return;
    last.place = item.place;
    this.items[item.place] = last;
  }

  forEach(visit: (item: Item) => void) {
    this.items.forEach(visit);
  }
}
