import Ajv from 'ajv/dist/2020';
import { createDocument } from '../services/api/openapi-document';

type Json = Record<string, unknown>;

interface DescribedResponse {
  description: string;
  headers: Json;
  content?: Record<string, { schema: Json }>;
}

export interface HttpResponse {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
}

const document = createDocument() as unknown as Json & { paths: Record<string, Record<string, Json>> };
const ajv = new Ajv({ strict: false, allErrors: true });
ajv.addSchema({ $id: 'openapi', ...document });

// Headers that any response may have, so the document need not describe them.
const COMMON_HEADERS = new Set([
  'connection',
  'x-content-type-options',
  'date',
  'keep-alive',
  'transfer-encoding',
  'content-length',
  'content-type',
]);

/** Expects a response whose status, headers, content type and body the OpenAPI document describes. */
export function expectToMatchOpenApi(method: string, path: string, response: HttpResponse) {
  const described = resolve(responseObject(method, path, response.status)) as unknown as DescribedResponse;
  const documented = Object.keys(described.headers).map((name) => name.toLowerCase());
  for (const name of Object.keys(response.headers))
    if (!COMMON_HEADERS.has(name)) expect(documented).toContain(name);
  if (described.content === undefined || method === 'HEAD') return expect(response.text).toBe('');
  const type = String(response.headers['content-type']).split(';')[0] as string;
  expect(Object.keys(described.content)).toContain(type);
  const schema = (described.content[type] as { schema: Json }).schema;
  const validate = ajv.compile({ $ref: 'openapi', ...inDocument(schema) });
  const valid = validate(type.endsWith('json') ? JSON.parse(response.text) : response.text);
  expect({ valid, errors: validate.errors }).toEqual({ valid: true, errors: null });
}

function responseObject(method: string, path: string, status: number): Json {
  const pathname = path.split('?')[0] as string;
  const template = Object.keys(document.paths).find((candidate) =>
    new RegExp(`^${candidate.replace(/\{\w+\}/g, '[^/]+')}$`).test(pathname),
  );
  const methods = document.paths[template ?? ''] as
    | Record<string, { responses: Record<number, Json> }>
    | undefined;
  // HEAD is GET without the body. Every method of a path describes its 405, so GET serves for methods that are not allowed.
  const operation = methods?.[method === 'HEAD' ? 'get' : method.toLowerCase()] ?? methods?.get;
  const described = operation?.responses[status];
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
