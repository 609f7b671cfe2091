import { z } from 'zod';

const MAX_TEXT_LENGTH = 200;
const LIMIT_MESSAGE = 'Expected a whole number from 1 to 100.';

// Unicode code points except U+0000 and lone surrogates. The explicit surrogate pair gives the pattern the same meaning
// with and without the flag `u`, because JSON Schema validators differ in whether they set it.
const SURROGATE_PAIR = '[\\uD800-\\uDBFF][\\uDC00-\\uDFFF]';
const CHARACTER = `(?:[^\\u0000\\uD800-\\uDFFF]|${SURROGATE_PAIR})`;
const NON_SPACE = `(?:[^\\s\\u0000\\uD800-\\uDFFF]|${SURROGATE_PAIR})`;

// JSON Schema cannot trim, and its `maxLength` would also count leading and trailing whitespace.
const PADDED_TEXT = new RegExp(
  `^\\s*${NON_SPACE}(?:${CHARACTER}{0,${MAX_TEXT_LENGTH - 2}}${NON_SPACE})?\\s*$`,
  'u',
);

const text = () =>
  z
    .string('Expected text.')
    .regex(PADDED_TEXT, `Expected 1 to ${MAX_TEXT_LENGTH} Unicode characters, none of them U+0000.`)
    .trim()
    .meta({
      minLength: 1,
      description: `1 to ${MAX_TEXT_LENGTH} Unicode characters, not counting leading and trailing whitespace, which is trimmed.`,
    });

const storedText = () =>
  z.string().meta({
    minLength: 1,
    maxLength: MAX_TEXT_LENGTH,
    description: 'Stored without leading and trailing whitespace.',
  });

const year = () =>
  z
    .int('Expected a whole number from -3000 to 3000, or null.')
    .min(-3000, 'Must be at least -3000.')
    .max(3000, 'Must be at most 3000.')
    .nullable();

/**
 * The year that a client sends. It is a separate schema in the OpenAPI document: openapi-typescript makes
 * a property with an inline `default` required, but not one that refers to a schema with a default.
 */
export const newBookYear = year().default(null).meta({ description: 'The year of publication, or null.' });

/** A book as a client sends it. */
export const newBook = z.strictObject(
  { title: text(), author: text(), year: newBookYear },
  'Expected a book.',
);

/** A book as it is stored and returned. */
export const book = z.strictObject({
  id: bookId(),
  title: storedText(),
  author: storedText(),
  year: year().meta({ description: 'The year of publication, or null.' }),
});

/** A page of books in order of creation. */
export const bookPage = z.strictObject({
  items: z.array(book),
  next: bookId()
    .nullable()
    .meta({ description: 'The value of `after` for the next page. It is null on the last page.' }),
});

/** The query parameters that select a page of books. */
export const bookQuery = z.object({
  limit: z
    .string()
    .regex(/^\d{1,3}$/, LIMIT_MESSAGE)
    .transform(Number)
    .pipe(z.int().min(1, LIMIT_MESSAGE).max(100, LIMIT_MESSAGE))
    .default(20)
    .meta({ description: 'The maximum number of books on a page.' }),
  after: bookId()
    .optional()
    .meta({ description: 'The page starts after the book with this id, even if that book was deleted.' }),
});

/** The value of `Idempotency-Key`, which identifies repetitions of a request. */
export const idempotencyKey = z
  .string()
  .regex(/^[\x21-\x7e]{1,255}$/, 'Expected 1 to 255 visible ASCII characters.');

export type NewBook = z.output<typeof newBook>;
export type Book = z.output<typeof book>;

function bookId() {
  return z.string().regex(/^[1-9]\d{0,14}$/, 'Expected the id of a book.');
}
