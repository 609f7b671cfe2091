// Runs in the cluster: an HTTP server that starts and stops load generators, and sends single requests.
import { createServer } from 'node:http';
import { json } from 'node:stream/consumers';
import { request } from 'undici';
import { LoadGenerator, type LoadOptions } from '../load';

export interface Commands {
  start: { name: string; url: string; perSecond: number; options: LoadOptions };
  stop: { name: string };
  request: { url: string; method: string; headers: Record<string, string>; body?: string };
}

const loads = new Map<string, LoadGenerator>();

const commands = {
  async start({ name, url, perSecond, options }: Commands['start']) {
    loads.set(name, new LoadGenerator(new URL(url), perSecond, options));
    return {};
  },
  async stop({ name }: Commands['stop']) {
    const load = loads.get(name);
    if (load === undefined) throw new Error(`no load is named ${name}`);
    loads.delete(name);
    const summary = await load.stop();
    const samples = load.samples.map((sample) => ({
      ...sample,
      sentAtMs: performance.timeOrigin + sample.sentAtMs,
    }));
    return { ...summary, samples };
  },
  async request({ url, ...message }: Commands['request']) {
    const { statusCode, headers, body } = await request(url, message as Parameters<typeof request>[1]);
    return { status: statusCode, headers, text: await body.text() };
  },
};

const server = createServer(async (req, res) => {
  const name = req.url?.slice(1) as keyof typeof commands;
  try {
    const result = await commands[name]((await json(req)) as never);
    res.end(JSON.stringify(result));
  } catch (error) {
    res.writeHead(500).end(JSON.stringify({ message: String(error) }));
  }
});
server.listen(8080);
process.on('SIGTERM', () => process.exit(0));
