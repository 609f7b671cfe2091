import { z } from 'zod';
import { book, bookPage, bookQuery, idempotencyKey, newBook } from '../../contract/books';

type Schema = Record<string, unknown>;

/** The OpenAPI 3.1 document of the public routes, of the schemas that also validate. */
export function createDocument() {
  return {
    openapi: '3.1.1',
    info: { title: 'Onehop', version: '1', description: 'Two services, one HTTP hop apart.' },
    paths: {
      '/hello': { get: hello },
      '/data': { get: data },
      '/books': { get: listBooks, post: addBook },
      '/books/{id}': {
        parameters: [{ name: 'id', in: 'path', required: true, schema: { type: 'string' } }],
        get: readBook,
        put: replaceBook,
        delete: deleteBook,
      },
      '/openapi.json': { get: openApiDocument },
    },
    components: {
      schemas: { ...componentSchemas(), Problem: problem },
      responses: { Problem: problemAnswer },
      headers: {
        'X-Request-Id': header('Stands in the log lines of both services'),
        'Server-Timing': header('How long the next hop took, and the whole'),
        'Proxy-Status': header('What went wrong with the next hop (RFC 9209)'),
      },
    },
  };
}

const ref = (kind: string, name: string) => ({ $ref: `#/components/${kind}/${name}` });

const header = (description: string, schema: Schema = { type: 'string' }) => ({ description, schema });

const parameter = (where: 'query' | 'header', name: string, { description, ...schema }: Schema) => ({
  name,
  in: where,
  description,
  schema,
});

const everyAnswer = {
  'X-Request-Id': ref('headers', 'X-Request-Id'),
  'Server-Timing': ref('headers', 'Server-Timing'),
};

function answer(description: string, type: string, schema: Schema, headers = {}) {
  return { description, headers: { ...everyAnswer, ...headers }, content: { [type]: { schema } } };
}

function bare(description: string, headers = {}) {
  return { description, headers: { ...everyAnswer, ...headers } };
}

function problems(...statuses: number[]) {
  return Object.fromEntries(statuses.map((status) => [status, ref('responses', 'Problem')]));
}

const problem = {
  description: 'RFC 9457',
  type: 'object',
  properties: {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    code: { type: 'string', description: 'A plain word, or an error type of RFC 9209' },
    detail: { type: 'string' },
    requestId: { type: 'string' },
    errors: {
      description: 'Every fault of a body that is no book',
      type: 'array',
      items: {
        type: 'object',
        properties: {
          pointer: { type: 'string', description: 'A JSON Pointer (RFC 6901)' },
          detail: { type: 'string' },
        },
        required: ['pointer', 'detail'],
        additionalProperties: false,
      },
    },
  },
  required: ['type', 'title', 'status', 'code', 'requestId'],
  additionalProperties: false,
};

const problemAnswer = answer('A problem document', 'application/problem+json', ref('schemas', 'Problem'), {
  'Proxy-Status': ref('headers', 'Proxy-Status'),
  'Retry-After': header('Seconds', { type: 'integer' }),
  Allow: header('The methods of the path'),
});

const etag = { ETag: header('Changes with the book'), 'Cache-Control': header('To be revalidated') };
const aBook = (description: string, headers = {}) =>
  answer(description, 'application/json', ref('schemas', 'Book'), { ...etag, ...headers });

const bookBody = { required: true, content: { 'application/json': { schema: ref('schemas', 'NewBook') } } };
const ifMatch = parameter('header', 'If-Match', {
  type: 'string',
  description: 'The ETag that it must have',
});
const ifNoneMatch = parameter('header', 'If-None-Match', {
  type: 'string',
  description: 'The ETag that is known already',
});

const ofNextHop = problems(502, 503, 504);

const hello = {
  summary: 'Asks api2, and answers with its text',
  responses: {
    200: answer("api2's text", 'text/plain', { type: 'string' }),
    500: answer(
      'api2 answered anything but 2xx, or gave no usable answer',
      'text/plain',
      { type: 'string' },
      { 'Proxy-Status': ref('headers', 'Proxy-Status') },
    ),
    ...problems(405, 503),
  },
};

const data = {
  summary: 'Relays the JSON of an external API',
  responses: {
    200: answer(
      'The JSON as it came',
      'application/json',
      {},
      {
        Age: header('Seconds, of what comes out of the cache', { type: 'integer' }),
        'Cache-Status': header('RFC 9211'),
      },
    ),
    ...problems(405),
    ...ofNextHop,
  },
};

const listBooks = {
  summary: 'Books in order of creation, by pages',
  parameters: queryParameters(),
  responses: {
    200: answer('A page of books', 'application/json', ref('schemas', 'BookPage'), {
      Link: header('The next page, while there is more'),
      'Cache-Control': header('To be revalidated'),
    }),
    ...problems(400, 405),
    ...ofNextHop,
  },
};

const addBook = {
  summary: 'Adds a book',
  parameters: [
    parameter('header', 'Idempotency-Key', {
      description: 'For a day, the same key with the same book gives the first answer again',
      ...schemaOf(idempotencyKey),
    }),
  ],
  requestBody: bookBody,
  responses: {
    201: aBook('The book', { Location: header('Its path') }),
    ...problems(400, 405, 413, 415, 422),
    ...ofNextHop,
  },
};

const readBook = {
  summary: 'A book',
  parameters: [ifNoneMatch, ifMatch],
  responses: {
    200: aBook('The book'),
    304: bare('It has the ETag that is known', etag),
    ...problems(400, 404, 405, 412),
    ...ofNextHop,
  },
};

const replaceBook = {
  summary: 'Replaces the whole book',
  parameters: [ifMatch],
  requestBody: bookBody,
  responses: {
    200: aBook('The book as it is now'),
    ...problems(400, 404, 405, 412, 413, 415, 422),
    ...ofNextHop,
  },
};

const deleteBook = {
  summary: 'Deletes a book',
  parameters: [ifMatch],
  responses: { 204: bare('It is gone'), ...problems(400, 404, 405, 412), ...ofNextHop },
};

const openApiDocument = {
  summary: 'This document',
  responses: { 200: answer('OpenAPI 3.1', 'application/json', { type: 'object' }), ...problems(405) },
};

function componentSchemas() {
  const schemas = { NewBook: newBook, Book: book, BookPage: bookPage };
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  const made = z.toJSONSchema(registry, { io: 'input', uri: (id) => ref('schemas', id).$ref });
  return Object.fromEntries(Object.entries(made.schemas).map(([id, schema]) => [id, inDocument(schema)]));
}

function queryParameters() {
  const { properties = {} } = schemaOf(bookQuery) as { properties?: Record<string, Schema> };
  return Object.entries(properties).map(([name, schema]) => parameter('query', name, schema));
}

function schemaOf(schema: z.ZodType): Schema {
  return inDocument(z.toJSONSchema(schema));
}

// The document itself says which dialect it speaks, and where a schema stands.
function inDocument({ $schema: _dialect, $id: _place, ...schema }: Schema): Schema {
  return schema;
}
