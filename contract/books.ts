import { z } from 'zod';

const LONGEST_TEXT = 200;
const LIMIT_EXPECTED = 'Expected a whole number from 1 to 100.';

const isText = (value: string) =>
  value.length > 0 && [...value].length <= LONGEST_TEXT && value.isWellFormed() && !value.includes('\0');

// JSON Schema says of the input less than what is checked: its limits hold for what is left after trimming.
const text = () =>
  z
    .string('Expected text.')
    .trim()
    .refine(isText, `Expected 1 to ${LONGEST_TEXT} Unicode characters, none of them U+0000.`)
    .meta({ minLength: 1, description: `1 to ${LONGEST_TEXT} Unicode characters; kept trimmed` });

const keptText = () => z.string().meta({ minLength: 1, maxLength: LONGEST_TEXT });

const year = () =>
  z
    .int('Expected a whole number from -3000 to 3000, or null.')
    .min(-3000, 'At least -3000.')
    .max(3000, 'At most 3000.')
    .nullable();

/** What a client says of a book. */
export const newBook = z.strictObject(
  { title: text(), author: text(), year: year().default(null) },
  'Expected a book.',
);

/** A book as it is kept. */
export const book = z.strictObject({
  id: bookId(),
  title: keptText(),
  author: keptText(),
  year: year(),
});

/** A page of books in order of creation. */
export const bookPage = z.strictObject({
  items: z.array(book),
  next: bookId().nullable().meta({ description: 'The `after` of the next page; null on the last one' }),
});

/** Which page of books. */
export const bookQuery = z.object({
  limit: z
    .string()
    .regex(/^\d{1,3}$/, LIMIT_EXPECTED)
    .transform(Number)
    .pipe(z.int().min(1, LIMIT_EXPECTED).max(100, LIMIT_EXPECTED))
    .default(20)
    .meta({ description: 'How many books at most' }),
  after: bookId().optional().meta({ description: 'Begins after this book, be it deleted since' }),
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
