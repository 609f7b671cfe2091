import { styleText } from 'node:util';

const COLUMNS = 80;
let muted = false;

interface Layout {
  /** What precedes each line. */
  indent?: string;
  /** What precedes the first line instead. */
  first?: string;
  style?: Parameters<typeof styleText>[0];
}

/** Prints a text, wrapped at 80 columns. It has colours only on a terminal, and not with NO_COLOR. */
export function print(text = '', { indent = '', first, style }: Layout = {}) {
  if (muted) return;
  const lines = text.split('\n').flatMap((line) => wrap(line, COLUMNS - indent.length));
  for (const [i, line] of lines.entries()) {
    const text = line && (i === 0 ? (first ?? indent) : indent) + line;
    process.stdout.write(`${style === undefined ? text : styleText(style, text)}\n`);
  }
}

/** Prints a shell command as it is, so that it can be copied. */
export function printCommand(command: string) {
  if (!muted) process.stdout.write(`${styleText('bold', `$ ${command}`)}\n`);
}

/** Suppresses all further output. */
export function mute() {
  muted = true;
}

export const isMuted = () => muted;

/** Resolves when the user presses Enter. */
export async function pause() {
  process.stdout.write(`\n${styleText('dim', 'Press Enter to continue, Ctrl-C to stop.')}`);
  await new Promise((resolve) => {
    process.stdin.once('data', resolve);
    process.stdin.once('end', resolve);
    process.stdin.resume();
  });
  process.stdin.pause();
}

// JSON has no spaces, so lines may also end after a comma.
function wrap(line: string, columns: number): string[] {
  if (line.length <= columns) return [line];
  const lines = [''];
  for (const part of line.match(/[^ ,]*[ ,]?/g) ?? []) {
    const last = lines.length - 1;
    if ((lines[last] + part).trimEnd().length <= columns) lines[last] += part;
    else lines.push(part);
  }
  return lines.map((part) => part.trimEnd());
}
