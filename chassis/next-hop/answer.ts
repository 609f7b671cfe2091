import type { IncomingHttpHeaders } from 'node:http';

/** A whole answer of a next hop. Of an answer other than 2xx only the status and the headers are kept. */
export class Answer {
  // Several callers may share an answer.
  private decoded: string | undefined;

  constructor(
    readonly status: number,
    readonly headers: IncomingHttpHeaders,
    private readonly chunks: readonly Buffer[],
    readonly bytes: number,
  ) {}

  get isSuccess() {
    return this.status >= 200 && this.status < 300;
  }

  body(): Buffer {
    return this.chunks.length === 1 ? (this.chunks[0] as Buffer) : Buffer.concat(this.chunks, this.bytes);
  }

  /** The body decoded by the charset of its `content-type`; UTF-8 where that names none that is known. */
  text(): string {
    this.decoded ??= this.decode();
    return this.decoded;
  }

  private decode() {
    const charset = charsetOf(this.headers['content-type']);
    return charset === undefined ? decodeUtf8(this.body()) : decoderFor(charset).decode(this.body());
  }
}

const UTF8_BOM = Buffer.from([0xef, 0xbb, 0xbf]);

// A fifth of what a TextDecoder costs, for the charset that nearly all answers have.
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
