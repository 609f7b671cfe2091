import { z } from 'zod';

const LONGEST_TEXT = 200;
const LIMIT_EXPECTED = 'Expected a whole number from 1 to 100.';

// Unicode code points except U+0000 and lone surrogates. The pair makes the pattern mean the same with and
// without the flag `u`, since validators of JSON Schema differ in that.
const PAIR = '[\\uD800-\\uDBFF][\\uDC00-\\uDFFF]';
const CHARACTER = `(?:[^\\u0000\\uD800-\\uDFFF]|${PAIR})`;
const NON_SPACE = `(?:[^\\s\\u0000\\uD800-\\uDFFF]|${PAIR})`;

// JSON Schema cannot trim, and its `maxLength` would also count the whitespace around the text.
const PADDED_TEXT = new RegExp(
  `^\\s*${NON_SPACE}(?:${CHARACTER}{0,${LONGEST_TEXT - 2}}${NON_SPACE})?\\s*$`,
  'u',
);

const text = () =>
  z
    .string('Expected text.')
    .regex(PADDED_TEXT, `Expected 1 to ${LONGEST_TEXT} Unicode characters, none of them U+0000.`)
    .trim()
    .meta({
      minLength: 1,
      description: `1 to ${LONGEST_TEXT} Unicode characters, not counting whitespace around them, which is trimmed.`,
    });

const keptText = () =>
  z
    .string()
    .meta({ minLength: 1, maxLength: LONGEST_TEXT, description: 'Stored without whitespace around it.' });

const year = () =>
  z
    .int('Expected a whole number from -3000 to 3000, or null.')
    .min(-3000, 'At least -3000.')
    .max(3000, 'At most 3000.')
    .nullable();

/**
 * The year that a client sends. It has a name of its own in the OpenAPI document: openapi-typescript makes
 * a property required whose `default` is inline, but not one that refers to a schema with a default.
 */
export const newBookYear = year().default(null).meta({ description: 'The year of publication, or null.' });

/** What a client says of a book. */
export const newBook = z.strictObject(
  { title: text(), author: text(), year: newBookYear },
  'Expected a book.',
);

/** A book as it is kept. */
export const book = z.strictObject({
  id: bookId(),
  title: keptText(),
  author: keptText(),
  year: year().meta({ description: 'The year of publication, or null.' }),
});

/** A page of books in order of creation. */
export const bookPage = z.strictObject({
  items: z.array(book),
  next: bookId()
    .nullable()
    .meta({ description: 'The value of `after` for the next page. It is null on the last page.' }),
});

/** Which page of books. */
export const bookQuery = z.object({
  limit: z
    .string()
    .regex(/^\d{1,3}$/, LIMIT_EXPECTED)
    .transform(Number)
    .pipe(z.int().min(1, LIMIT_EXPECTED).max(100, LIMIT_EXPECTED))
    .default(20)
    .meta({ description: 'The maximum number of books on a page.' }),
  after: bookId()
    .optional()
    .meta({ description: 'The page starts after the book with this id, even if that book was deleted.' }),
});

/** How a request says that it is the same one again. */
export const idempotencyKey = z
  .string()
  .regex(/^[\x21-\x7e]{1,255}$/, 'Expected 1 to 255 visible ASCII characters.');

export type NewBook = z.output<typeof newBook>;
export type Book = z.output<typeof book>;

function bookId() {
  return z.string().regex(/^[1-9]\d{0,14}$/, 'Expected the id of a book.');
}
