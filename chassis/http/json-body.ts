import { isUtf8 } from 'node:buffer';
import express, { type Request, type RequestHandler, type Response } from 'express';
import type { z } from 'zod';
import { Problem } from './problem';

const MAX_BYTES = 100 * 1000;

const PROBLEMS: Readonly<Record<string, [status: number, code: string, detail: string]>> = {
  'entity.parse.failed': [400, 'malformed_json', 'The request body is not valid JSON.'],
  'entity.verify.failed': [400, 'malformed_json', 'The request body is not valid JSON.'],
  'encoding.unsupported': [415, 'unsupported_media_type', 'Content-Encoding is not supported.'],
  'charset.unsupported': [415, 'unsupported_media_type', 'JSON must be encoded as UTF-8.'],
  'entity.too.large': [413, 'content_too_large', `The request body is larger than ${MAX_BYTES / 1000} kB.`],
};

/** Parses a JSON body of at most 100 kB into `req.body`, and rejects any other. */
export function jsonBody(): RequestHandler {
  return bodyReader(
    express.json({ strict: false, inflate: false, limit: MAX_BYTES, verify: checkText }),
    true,
  );
}

/**
 * Reads a JSON body of at most 100 kB into `req.body` as a Buffer, unparsed; undefined without a body. Rejects
 * other media types, content codings and larger bodies, from the headers alone where possible.
 */
export function rawJsonBody(): RequestHandler {
  return bodyReader(express.raw({ type: () => true, inflate: false, limit: MAX_BYTES }), false);
}

function bodyReader(read: RequestHandler, isRequired: boolean): RequestHandler {
  return function readBody(req, res, next) {
    checkBodyHeaders(req);
    // Sent only here, so that a client that expects it does not send a body that is rejected.
    if (req.headers.expect !== undefined) res.writeContinue();
    const { record } = res.locals;
    record.isReceivingBody = true;
    const countChunk = (chunk: Buffer) => {
      // body-parser discards the rest of a body that exceeds its limit.
      if (!hasEnded(res) && record.bufferedBytes <= MAX_BYTES) record.countBuffered(chunk.length);
    };
    req.on('data', countChunk);
    read(req, res, (error?: unknown) => {
      req.off('data', countChunk);
      record.isReceivingBody = false;
      if (hasEnded(res)) return;
      const { type } = Object(error) as { type?: string };
      if (error && type !== undefined && type in PROBLEMS) next(bodyProblem(type));
      else if (error || (isRequired && req.body === undefined))
        next(error ?? bodyProblem('entity.parse.failed'));
      else next();
    });
  };
}

// While the body arrives, the client may disconnect or get a 408.
function hasEnded(res: Response) {
  return res.writableEnded || res.destroyed;
}

function checkBodyHeaders(req: Request) {
  const { 'content-encoding': coding, 'content-length': length } = req.headers;
  if (coding !== undefined && coding.toLowerCase() !== 'identity') throw bodyProblem('encoding.unsupported');
  if (hasUnsupportedType(req))
    throw new Problem(415, 'unsupported_media_type', { detail: 'Content-Type must be application/json.' });
  if (Number(length) > MAX_BYTES) throw bodyProblem('entity.too.large');
}

// Without a Content-Type, an empty body is left to the parser, which reports malformed JSON.
function hasUnsupportedType(req: Request) {
  const { 'content-type': type, 'content-length': length, 'transfer-encoding': transfer } = req.headers;
  if (type === undefined) return transfer !== undefined || Number(length ?? 0) > 0;
  return !/^\s*application\/json\s*(;|$)/i.test(type);
}

// body-parser accepts an empty body and invalid UTF-8.
function checkText(_req: unknown, _res: unknown, body: Buffer) {
  if (body.length === 0 || !isUtf8(body)) throw new Error('body is empty or not UTF-8');
}

/**
 * Returns the body as parsed by `schema`.
 * @throws {Problem} 422 that lists every validation error with its JSON Pointer (RFC 6901)
 */
export function validateBody<Schema extends z.ZodType>(schema: Schema, body: unknown): z.output<Schema> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const errors = result.error.issues.flatMap((issue) => {
    const names = issue.code === 'unrecognized_keys' ? issue.keys : [undefined];
    const detail = issue.code === 'unrecognized_keys' ? 'Unknown field.' : issue.message;
    return names.map((name) => ({
      pointer: jsonPointer(name === undefined ? issue.path : [...issue.path, name]),
      detail,
    }));
  });
  throw new Problem(422, 'invalid_body', { detail: 'Request body validation failed.', members: { errors } });
}

function jsonPointer(path: readonly PropertyKey[]) {
  return path.map((name) => `/${String(name).replaceAll('~', '~0').replaceAll('/', '~1')}`).join('');
}

function bodyProblem(type: string) {
  const [status, code, detail] = PROBLEMS[type] ?? [400, 'bad_request', 'The request is malformed.'];
  return new Problem(status, code, { detail });
}
