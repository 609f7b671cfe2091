import { Agent } from 'undici';

/** Any response that takes longer than this counts as a failure: the deadline plus a margin. */
const LATE_MS = 2100;
const GIVE_UP_MS = 10_000;

/** Sends requests to `url` at a constant rate, whatever the responses are. With `bodyOf`, sends a `POST`. */
export class Load {
  samples = [];
  #url;
  #bodyOf;
  #agent = new Agent({ keepAliveTimeout: 1000, headersTimeout: GIVE_UP_MS, bodyTimeout: GIVE_UP_MS });
  #pending = new Set();
  #startedMs = performance.now();
  #timer;

  constructor(url, perSecond, bodyOf) {
    this.#url = new URL(url);
    this.#bodyOf = bodyOf;
    let sent = 0;
    this.#timer = setInterval(() => {
      const due = ((performance.now() - this.#startedMs) / 1000) * perSecond;
      for (; sent < due; sent++) this.#send(sent);
    }, 2);
  }

  /** Stops sending, waits for pending responses, and resolves to the samples in the order of sending. */
  async stop() {
    clearInterval(this.#timer);
    await Promise.all(this.#pending);
    await this.#agent.close();
    return this.samples;
  }

  #send(number) {
    const sample = { number, sentAt: Date.now(), status: 0, isFailed: true };
    this.samples.push(sample);
    const sentMs = performance.now();
    const pending = this.#request(number)
      .then(
        ([status, clientMs]) => Object.assign(sample, { status, clientMs }),
        () => {},
      )
      .then(() => {
        sample.durationMs = performance.now() - sentMs;
        sample.isFailed = sample.status !== 200 || sample.durationMs > LATE_MS;
        this.#pending.delete(pending);
      });
    this.#pending.add(pending);
  }

  async #request(number) {
    const { statusCode, headers, body } = await this.#agent.request({
      origin: this.#url.origin,
      path: this.#url.pathname,
      method: this.#bodyOf ? 'POST' : 'GET',
      body: this.#bodyOf?.(number),
    });
    await body.dump();
    return [statusCode, Number(/dur=([\d.]+)/.exec(headers['server-timing'])?.[1])];
  }
}
