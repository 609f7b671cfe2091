import { z } from 'zod';
import { book, bookPage, bookQuery, idempotencyKey, newBook, newBookYear } from '../../contract/books';

type Schema = Record<string, unknown>;

/** The OpenAPI 3.1 document of the public routes. Its book schemas are also used to validate requests. */
export function createDocument() {
  return {
    openapi: '3.1.1',
    info: {
      title: 'Onehop API',
      version: '1.0.0',
      summary: 'The public HTTP API of Onehop.',
      description:
        'Onehop consists of two services, one HTTP hop apart. This document describes the public service, `api`. ' +
        'Every `GET` operation also works with `HEAD`. ' +
        'Errors are problem documents (RFC 9457), except for the plain-text `500` responses of `/hello`.',
      contact: { name: 'Onehop maintainers' },
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/', description: 'The server that served this document.' }],
    // No operation requires credentials.
    security: [],
    tags: [
      { name: 'greeting', description: 'A response that api builds from a call to api2.' },
      { name: 'relay', description: 'The JSON of an external API, relayed through a shared cache.' },
      { name: 'books', description: 'Books, stored by api2.' },
      { name: 'meta', description: 'The description of this API.' },
    ],
    paths: {
      '/hello': { get: getHello },
      '/data': { get: getData },
      '/books': { get: listBooks, post: createBook },
      '/books/{id}': {
        parameters: [
          {
            name: 'id',
            in: 'path',
            required: true,
            description: 'The id of the book.',
            schema: { type: 'string' },
          },
        ],
        get: getBook,
        put: replaceBook,
        delete: deleteBook,
      },
      '/openapi.json': { get: getOpenApiDocument },
    },
    components: {
      schemas: { ...componentSchemas(), Problem: problem },
      responses: { Problem: problemResponse },
      headers: {
        'X-Request-Id': header('Identifies the request in the logs of both services.'),
        'Server-Timing': header(
          'The durations of the next hop and of the complete request, in milliseconds. If the next hop was ' +
            'called more than once, the duration and outcome of each attempt, such as `api2.2;dur=2.10;desc="ok"`.',
        ),
        'X-Attempts': header(
          'The attempts to call the next hop, such as `first;start=0.00, hedge;start=500.31`, with their start in ' +
            'milliseconds. Present if there was more than one or, with `FAULTS=on`, if api2 was called.',
        ),
        'X-Content-Type-Options': header('Always `nosniff`.'),
        'Proxy-Status': header('The failure between api and its next hop (RFC 9209).'),
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

const commonHeaders = {
  'X-Request-Id': ref('headers', 'X-Request-Id'),
  'Server-Timing': ref('headers', 'Server-Timing'),
  'X-Attempts': ref('headers', 'X-Attempts'),
  'X-Content-Type-Options': ref('headers', 'X-Content-Type-Options'),
};

function response(description: string, type: string, schema: Schema, headers = {}) {
  return { description, headers: { ...commonHeaders, ...headers }, content: { [type]: { schema } } };
}

function emptyResponse(description: string, headers = {}) {
  return { description, headers: { ...commonHeaders, ...headers } };
}

function problems(...statuses: number[]) {
  return Object.fromEntries(statuses.map((status) => [status, ref('responses', 'Problem')]));
}

const problem = {
  description: 'A problem document (RFC 9457).',
  type: 'object',
  properties: {
    type: { type: 'string', description: 'Always `about:blank`.' },
    title: { type: 'string', description: 'The reason phrase of the status.' },
    status: { type: 'integer', description: 'The HTTP status.' },
    code: {
      type: 'string',
      description: 'The cause: an error type of RFC 9209, or a word such as `not_found`.',
    },
    detail: { type: 'string', description: 'A human-readable explanation.' },
    requestId: { type: 'string', description: 'The value of `X-Request-Id`.' },
    errors: {
      description: 'Every validation error of the request body.',
      type: 'array',
      items: {
        type: 'object',
        properties: {
          pointer: { type: 'string', description: 'A JSON Pointer (RFC 6901) to the invalid value.' },
          detail: { type: 'string', description: 'What was expected.' },
        },
        required: ['pointer', 'detail'],
        additionalProperties: false,
      },
    },
  },
  required: ['type', 'title', 'status', 'code', 'requestId'],
  additionalProperties: false,
};

const problemHeaders = {
  'Proxy-Status': ref('headers', 'Proxy-Status'),
  'Retry-After': header('The number of seconds to wait before the next attempt.', { type: 'integer' }),
  Allow: header('The methods that the path supports.'),
};
const problemResponse = response(
  'The request failed.',
  'application/problem+json',
  ref('schemas', 'Problem'),
  problemHeaders,
);

const bookHeaders = {
  ETag: header('The version of the book.'),
  'Cache-Control': header('Always `no-cache`: revalidate with `If-None-Match`.'),
};
const bookResponse = (description: string, headers = {}) =>
  response(description, 'application/json', ref('schemas', 'Book'), { ...bookHeaders, ...headers });

const bookBody = {
  description: 'The book.',
  required: true,
  content: { 'application/json': { schema: ref('schemas', 'NewBook') } },
};
const ifMatch = parameter('header', 'If-Match', {
  type: 'string',
  description: 'The request succeeds only if the book has this `ETag`.',
});
const ifNoneMatch = parameter('header', 'If-None-Match', {
  type: 'string',
  description: 'The `ETag` that the client already has.',
});

const xFault = parameter('header', 'X-Fault', {
  type: 'string',
  description:
    'For demonstrations: the fault that api2 injects into this request, as a structured field item (RFC 9651). ' +
    'Ignored unless the services run with `FAULTS=on`.',
  examples: ['hang;attempt=1', 'delay;ms=800', 'drip;ms=50', 'status;code=503', 'reset', 'truncate'],
});

const nextHopProblems = problems(500, 502, 503, 504);

const getHello = {
  operationId: 'getHello',
  tags: ['greeting'],
  summary: 'Get the greeting',
  description: 'Requests the greeting from api2 and returns its text.',
  parameters: [xFault],
  responses: {
    200: response('The text returned by api2.', 'text/plain', { type: 'string' }),
    500: {
      description:
        'api2 responded with a status other than 2xx, or returned no usable response. ' +
        'A problem document instead of text means that api itself failed.',
      headers: { ...commonHeaders, 'Proxy-Status': ref('headers', 'Proxy-Status') },
      content: {
        'text/plain': { schema: { type: 'string' } },
        'application/problem+json': { schema: ref('schemas', 'Problem') },
      },
    },
    ...problems(400, 405, 503),
  },
};

const getData = {
  operationId: 'getData',
  tags: ['relay'],
  summary: 'Get the data of the external API',
  description:
    'Relays the JSON of the external API unchanged, through a shared cache (RFC 9111) if that API allows caching. ' +
    'Requests that arrive during a fetch share it.',
  responses: {
    200: response(
      'The JSON of the external API.',
      'application/json',
      {},
      {
        Age: header('The age of a cached response, in seconds.', { type: 'integer' }),
        'Cache-Status': header('How the cache handled the request (RFC 9211).'),
      },
    ),
    ...problems(405),
    ...nextHopProblems,
  },
};

const listBooks = {
  operationId: 'listBooks',
  tags: ['books'],
  summary: 'List books',
  description: 'Returns one page of books in order of creation.',
  parameters: [...queryParameters(), xFault],
  responses: {
    200: response('A page of books.', 'application/json', ref('schemas', 'BookPage'), {
      Link: header('The path of the next page, with `rel="next"`; absent on the last page.'),
      'Cache-Control': header('Always `no-cache`.'),
    }),
    ...problems(400, 405),
    ...nextHopProblems,
  },
};

const createBook = {
  operationId: 'createBook',
  tags: ['books'],
  summary: 'Add a book',
  description: 'Adds a book and assigns its id.',
  parameters: [
    parameter('header', 'Idempotency-Key', {
      description:
        'For a day, a request with the same key and the same book returns the first response again.',
      ...schemaOf(idempotencyKey),
    }),
    xFault,
  ],
  requestBody: bookBody,
  responses: {
    201: bookResponse('The book was added.', { Location: header('The path of the book.') }),
    ...problems(400, 405, 413, 415, 422),
    ...nextHopProblems,
  },
};

const getBook = {
  operationId: 'getBook',
  tags: ['books'],
  summary: 'Get a book',
  description: 'Returns the book with its `ETag`.',
  parameters: [ifNoneMatch, ifMatch, xFault],
  responses: {
    200: bookResponse('The book.'),
    304: emptyResponse('The book still has the `ETag` of `If-None-Match`.', bookHeaders),
    ...problems(400, 404, 405, 412),
    ...nextHopProblems,
  },
};

const replaceBook = {
  operationId: 'replaceBook',
  tags: ['books'],
  summary: 'Replace a book',
  description: 'Replaces the complete book. A `year` that is absent becomes `null`.',
  parameters: [ifMatch, xFault],
  requestBody: bookBody,
  responses: {
    200: bookResponse('The book was replaced.'),
    ...problems(400, 404, 405, 412, 413, 415, 422),
    ...nextHopProblems,
  },
};

const deleteBook = {
  operationId: 'deleteBook',
  tags: ['books'],
  summary: 'Delete a book',
  description: 'Deletes the book. Its id is not used again.',
  parameters: [ifMatch, xFault],
  responses: {
    204: emptyResponse('The book was deleted.'),
    ...problems(400, 404, 405, 412),
    ...nextHopProblems,
  },
};

const getOpenApiDocument = {
  operationId: 'getOpenApiDocument',
  tags: ['meta'],
  summary: 'Get this document',
  description: 'Returns this OpenAPI 3.1 document.',
  responses: {
    200: response('This document.', 'application/json', { type: 'object' }),
    ...problems(405, 500, 503),
  },
};

function componentSchemas() {
  const schemas = { NewBook: newBook, NewBookYear: newBookYear, Book: book, BookPage: bookPage };
  const registry = z.registry<{ id: string }>();
  for (const [id, schema] of Object.entries(schemas)) registry.add(schema, { id });
  const generated = z.toJSONSchema(registry, { io: 'input', uri: (id) => ref('schemas', id).$ref });
  return Object.fromEntries(
    Object.entries(generated.schemas).map(([id, schema]) => [id, withoutSchemaKeywords(schema)]),
  );
}

function queryParameters() {
  const { properties = {} } = schemaOf(bookQuery) as { properties?: Record<string, Schema> };
  return Object.entries(properties).map(([name, schema]) => parameter('query', name, schema));
}

function schemaOf(schema: z.ZodType): Schema {
  return withoutSchemaKeywords(z.toJSONSchema(schema));
}

// OpenAPI 3.1 defines the dialect, and the position in the document identifies the schema.
function withoutSchemaKeywords({ $schema: _dialect, $id: _id, ...schema }: Schema): Schema {
  return schema;
}
