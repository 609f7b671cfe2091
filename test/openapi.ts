import Ajv from 'ajv/dist/2020';
import { createDocument } from '../services/api/openapi-document';

type Json = Record<string, unknown>;

interface Described {
  description: string;
  headers: Json;
  content?: Record<string, { schema: Json }>;
}

export interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
}

const document = createDocument() as unknown as Json & { paths: Record<string, Record<string, Json>> };
const ajv = new Ajv({ strict: false, allErrors: true });
ajv.addSchema({ $id: 'openapi', ...document });

// Every answer of an HTTP server may have these.
const ALWAYS = new Set([
  'connection',
  'x-content-type-options',
  'date',
  'keep-alive',
  'transfer-encoding',
  'content-length',
  'content-type',
]);

/** Fails unless an answer is one that the OpenAPI document tells of: status, headers, type and body. */
export function holdToOpenApi(method: string, path: string, answer: Answer) {
  const described = resolve(operation(method, path, answer.status)) as unknown as Described;
  const named = Object.keys(described.headers).map((name) => name.toLowerCase());
  for (const name of Object.keys(answer.headers)) if (!ALWAYS.has(name)) expect(named).toContain(name);
  if (described.content === undefined || method === 'HEAD') return expect(answer.text).toBe('');
  const type = String(answer.headers['content-type']).split(';')[0] as string;
  expect(Object.keys(described.content)).toContain(type);
  const schema = (described.content[type] as { schema: Json }).schema;
  const validate = ajv.compile({ $ref: 'openapi', ...inDocument(schema) });
  const valid = validate(type.endsWith('json') ? JSON.parse(answer.text) : answer.text);
  expect({ valid, errors: validate.errors }).toEqual({ valid: true, errors: null });
}

function operation(method: string, path: string, status: number): Json {
  const bare = path.split('?')[0] as string;
  const template = Object.keys(document.paths).find((known) =>
    new RegExp(`^${known.replace(/\{\w+\}/g, '[^/]+')}$`).test(bare),
  );
  const methods = document.paths[template ?? ''] as
    | Record<string, { responses: Record<number, Json> }>
    | undefined;
  // HEAD is GET without the body; what is not allowed is told by any of the methods.
  const allowed = methods?.[method === 'HEAD' ? 'get' : method.toLowerCase()] ?? methods?.get;
  const described = allowed?.responses[status];
  if (described === undefined) throw new Error(`${method} ${path}: ${status} is not in the OpenAPI document`);
  return described;
}

function resolve(node: Json): Json {
  if (typeof node.$ref !== 'string') return node;
  const names = node.$ref.slice(2).split('/');
  return names.reduce<unknown>((at, name) => (at as Json)[name], document) as Json;
}

function inDocument(schema: Json): Json {
  return typeof schema.$ref === 'string' ? { $ref: `openapi${schema.$ref}` } : { $ref: undefined, ...schema };
}
