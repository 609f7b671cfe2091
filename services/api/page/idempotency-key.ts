/** Generates a value for `Idempotency-Key`. */
export function newIdempotencyKey() {
  // crypto.randomUUID exists in secure contexts only, and the page also works over plain HTTP.
  return crypto.getRandomValues(new Uint32Array(4)).join('-');
}
