/** A new value for `Idempotency-Key`. */
export function newKey() {
  // crypto.randomUUID exists in secure contexts only, and the page also works over plain HTTP.
  return crypto.getRandomValues(new Uint32Array(4)).join('-');
}
