/** An item that stores its own index in `InFlight`. */
export interface Indexed {
  index: number;
}

/**
 * The requests in flight. An array rather than a `Set`: the old hash tables of a busy `Set` keep ended requests
 * alive through minor garbage collections (docs/decisions/0004-in-flight.md).
 */
export class InFlight<Item extends Indexed> {
  private readonly items: Item[] = [];

  get size() {
    return this.items.length;
  }

  add(item: Item) {
    item.index = this.items.length;
    this.items.push(item);
  }

  /** Removes an item, and moves the last one to its index. */
  delete(item: Item) {
    const last = this.items.pop();
    if (last === undefined || last === item) return;
    last.index = item.index;
    this.items[item.index] = last;
  }

  forEach(callback: (item: Item) => void) {
    this.items.forEach(callback);
  }
}
