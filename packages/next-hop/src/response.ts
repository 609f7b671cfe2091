import type { IncomingHttpHeaders } from 'node:http';

/** A complete response, as returned by `get`. */
export class WholeResponse {
  // Cached, because several callers may share a response.
  private decoded: string | undefined;

  constructor(
    readonly statusCode: number,
    readonly headers: IncomingHttpHeaders,
    private readonly chunks: readonly Buffer[],
    readonly bodyBytes: number,
  ) {}

  /** Whether the status is 2xx. */
  get ok() {
    return this.statusCode >= 200 && this.statusCode < 300;
  }

  body(): Buffer {
    return this.chunks.length === 1 ? (this.chunks[0] as Buffer) : Buffer.concat(this.chunks, this.bodyBytes);
  }

  /** The body, decoded by the charset of its `content-type`, or as UTF-8 if that is missing or unknown. */
  text(): string {
    this.decoded ??= this.decode();
    return this.decoded;
  }

  /** @throws {SyntaxError} if the body is not JSON */
  json(): unknown {
    return JSON.parse(this.text());
  }

  private decode() {
    const charset = charsetOf(this.headers['content-type']);
    return charset === undefined ? decodeUtf8(this.body()) : decoderFor(charset).decode(this.body());
  }
}

const UTF8_BOM = Buffer.from([0xef, 0xbb, 0xbf]);

// Five times as fast as a TextDecoder, for the charset of nearly all responses.
function decodeUtf8(body: Buffer) {
  return body.subarray(0, 3).equals(UTF8_BOM) ? body.toString('utf8', 3) : body.toString('utf8');
}

function charsetOf(contentType: string | undefined) {
  const charset =
    contentType === undefined ? undefined : /;\s*charset\s*=\s*"?([^\s;"]+)/i.exec(contentType)?.[1];
  return charset === undefined || /^utf-?8$/i.test(charset) ? undefined : charset;
}

function decoderFor(charset: string) {
  try {
    return new TextDecoder(charset);
  } catch {
    // An unknown label is a RangeError.
    return new TextDecoder();
  }
}
