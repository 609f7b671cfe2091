import { MockAgent } from 'undici';
import { CircuitBreaker, type CircuitState } from './circuit-breaker';
import { Endpoint } from './endpoint';
import { EndpointPool } from './endpoint-pool';
import { errorCode } from './errors';
import { HedgeDelay } from './hedge-delay';
import { RetryBudget } from './retry-budget';

async function poolOf(...ips: string[]) {
  const dispatcher = new MockAgent();
  const lookup = async () => ips.map((address) => ({ address, family: 4 }));
  const pool = new EndpointPool({
    hostname: 'hop',
    connections: 8,
    open: () => dispatcher,
    lookup,
  });
  await pool.lookup();
  return pool;
}

describe('the choice of an endpoint', () => {
  test('prefers the endpoint to avoid over an ejected one', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2');
    const [good, bad] = [pool.choose(), pool.choose()] as [Endpoint, Endpoint];
    bad.eject(0);
    for (let i = 0; i < 4; i++) expect(pool.choose([good])).toBe(good);
    await pool.close();
  });

  test('continues after the previous first attempt, whatever retries and hedges were chosen since', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2');
    for (let i = 0; i < 10; i++) {
      const first = pool.choose() as Endpoint;
      for (let j = 0; j < 2; j++) expect(pool.choose([first])).not.toBe(first);
      expect(pool.choose()).not.toBe(first);
    }
    await pool.close();
  });

  test('prefers endpoints that were not tried, then the one that was tried first', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2', '127.0.0.3');
    const [first, second, third] = [pool.choose(), pool.choose(), pool.choose()] as [
      Endpoint,
      Endpoint,
      Endpoint,
    ];
    for (let i = 0; i < 3; i++) {
      expect(pool.choose([first, second])).toBe(third);
      expect(pool.choose([second, third, first])).toBe(second);
    }
    await pool.close();
  });

  test('is round-robin among endpoints without requests', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2', '127.0.0.3');
    const chosen = Array.from({ length: 6 }, () => pool.choose()?.address);
    expect(new Set(chosen.slice(0, 3)).size).toBe(3);
    expect(chosen.slice(3)).toEqual(chosen.slice(0, 3));
    await pool.close();
  });

  test('prefers the endpoint that responded most recently among those with the same number of requests in flight', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2', '127.0.0.3');
    const endpoints = [pool.choose(), pool.choose(), pool.choose()] as Endpoint[];
    for (const endpoint of endpoints) endpoint.inFlight = 1;
    for (const [index, last] of endpoints.entries()) {
      last.succeeded(index + 1);
      for (let i = 0; i < 4; i++) expect(pool.choose()).toBe(last);
    }
    await pool.close();
  });
});

describe('an endpoint that is being probed', () => {
  const poolWithProbedEndpoint = async (timeoutMs: number) => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2', '127.0.0.3');
    const [probed, ...others] = [pool.choose(), pool.choose(), pool.choose()] as [
      Endpoint,
      Endpoint,
      Endpoint,
    ];
    probed.startProbe(timeoutMs);
    /** Sends six requests and returns how many of them go to the probed endpoint. */
    const sendSixRequests = () => {
      const chosen = Array.from({ length: 6 }, () => {
        const endpoint = pool.choose();
        endpoint?.requestStarted();
        if (endpoint) endpoint.inFlight--;
        return endpoint;
      });
      return chosen.filter((endpoint) => endpoint === probed).length;
    };
    return { pool, probed, others, sendSixRequests };
  };

  afterEach(() => jest.restoreAllMocks());

  test.each([500, 50])(
    'with a probe timeout of %i ms, gets no request in the first fifth, then at most one per fifth',
    async (timeoutMs) => {
      const startedMs = performance.now();
      const now = jest.spyOn(performance, 'now').mockReturnValue(startedMs);
      const { pool, sendSixRequests } = await poolWithProbedEndpoint(timeoutMs);
      const requestsAfter = (fifths: number) => {
        now.mockReturnValue(startedMs + (fifths * timeoutMs) / 5);
        return sendSixRequests();
      };
      expect([0.5, 1.5, 2, 3].map(requestsAfter)).toEqual([0, 1, 0, 1]);
      await pool.close();
    },
  );

  test('gets its share again after a request succeeds', async () => {
    const { pool, probed, sendSixRequests } = await poolWithProbedEndpoint(5000);
    expect(sendSixRequests()).toBe(0);
    probed.succeeded(0);
    expect(sendSixRequests()).toBe(2);
    await pool.close();
  });

  test('is preferred to endpoints in `avoid`', async () => {
    const { pool, probed, others } = await poolWithProbedEndpoint(5000);
    expect(pool.choose(others)).toBe(probed);
    await pool.close();
  });

  test('is used if all others are busy', async () => {
    const { pool, probed, others } = await poolWithProbedEndpoint(5000);
    for (const other of others) other.inFlight = other.maxConnections - 1;
    expect(pool.choose()).not.toBe(probed);
    for (const other of others) other.inFlight = other.maxConnections;
    expect(pool.choose()).toBe(probed);
    await pool.close();
  });

  test('is used if all others are ejected', async () => {
    const { pool, probed, others } = await poolWithProbedEndpoint(5000);
    for (const other of others) other.eject(performance.now());
    expect(pool.choose()).toBe(probed);
    await pool.close();
  });

  test('gets its share if all others are being probed, too', async () => {
    const { pool, others, sendSixRequests } = await poolWithProbedEndpoint(5000);
    for (const other of others) other.startProbe(5000);
    expect(sendSixRequests()).toBe(2);
    await pool.close();
  });
});

describe('ejection', () => {
  const createEndpoint = () => new Endpoint('127.0.0.1', 8, () => new MockAgent());

  test('ejects an endpoint after five failures in a row, but not after four and a success', () => {
    const endpoint = createEndpoint();
    for (let i = 0; i < 4; i++) endpoint.failed(0);
    endpoint.succeeded(0);
    for (let i = 0; i < 4; i++) endpoint.failed(0);
    expect(endpoint.isEjected).toBe(false);
    endpoint.failed(0);
    expect(endpoint.isEjected).toBe(true);
  });

  test('ejects an endpoint when a probe fails after two warnings in a row and no response since', () => {
    const endpoint = createEndpoint();
    endpoint.suspect();
    endpoint.succeeded(0);
    endpoint.suspect();
    expect(endpoint.isDueForProbe(0)).toBe(false);
    endpoint.suspect();
    expect(endpoint.isDueForProbe(0)).toBe(true);
    endpoint.startProbe(500);
    expect(endpoint.isDueForProbe(0)).toBe(false);
    endpoint.succeeded(0);
    endpoint.probeFailed(0);
    expect(endpoint.isEjected).toBe(false);
    endpoint.suspect();
    endpoint.suspect();
    endpoint.startProbe(500);
    endpoint.probeFailed(0);
    expect(endpoint.isEjected).toBe(true);
  });

  test('lasts twice as long each time, even if its probe succeeds, until another request succeeds', () => {
    const endpoint = createEndpoint();
    for (const [ejectedAtMs, lastsMs] of [
      [0, 1000],
      [10_000, 2000],
      [20_000, 4000],
    ] as const) {
      endpoint.eject(ejectedAtMs);
      expect(endpoint.isDueForProbe(ejectedAtMs + lastsMs - 1)).toBe(false);
      expect(endpoint.isDueForProbe(ejectedAtMs + lastsMs)).toBe(true);
      endpoint.startProbe(500);
      endpoint.probeSucceeded();
      expect(endpoint.isEjected).toBe(false);
    }
    endpoint.succeeded(0);
    endpoint.eject(0);
    expect(endpoint.isDueForProbe(1000)).toBe(true);
  });

  test.each([0, 1])(
    'the ejected one of two endpoints is due for a probe while the other one is suspect (order %i)',
    async (order) => {
      const pool = await poolOf('127.0.0.1', '127.0.0.2');
      const endpoints = [pool.choose(), pool.choose()] as [Endpoint, Endpoint];
      const [ejected, suspect] = order === 0 ? endpoints : endpoints.toReversed();
      ejected?.eject(0);
      suspect?.suspect();
      suspect?.suspect();
      expect(pool.dueForProbe(1000)).toBe(ejected);
      await pool.close();
    },
  );

  test('is not extended by failures during a probe', () => {
    const endpoint = createEndpoint();
    endpoint.eject(0);
    endpoint.startProbe(500);
    for (let i = 0; i < 10; i++) endpoint.failed(1500);
    expect(endpoint.isDueForProbe(5000)).toBe(false);
    endpoint.probeFailed(2000);
    expect(endpoint.isDueForProbe(3999)).toBe(false);
    expect(endpoint.isDueForProbe(4000)).toBe(true);
  });

  test('ejects an endpoint when five of its last 20 requests failed, until half of the endpoints are ejected', async () => {
    const pool = await poolOf('127.0.0.1', '127.0.0.2', '127.0.0.3');
    const [first, second] = [pool.choose(), pool.choose()] as [Endpoint, Endpoint];
    const failOneOfFive = (endpoint: Endpoint) => {
      pool.failed(endpoint, 0);
      for (let i = 0; i < 4; i++) endpoint.succeeded(0);
    };
    for (let i = 0; i < 10; i++) failOneOfFive(first);
    expect(first.isEjected).toBe(false);
    const failHalf = (endpoint: Endpoint) => {
      for (let i = 0; i < 10 && !endpoint.isEjected; i++) {
        endpoint.succeeded(0);
        pool.failed(endpoint, 0);
      }
    };
    failHalf(first);
    expect(first.isEjected).toBe(true);
    failHalf(second);
    expect(second.isEjected).toBe(false);
    await pool.close();
  });

  test('lasts 1 s at first, twice as long after each failed probe, and at most 30 s', () => {
    const endpoint = createEndpoint();
    const durationsMs: number[] = [];
    let nowMs = 0;
    endpoint.eject(nowMs);
    for (let probes = 0; probes < 7; probes++) {
      const sinceMs = nowMs;
      while (!endpoint.isDueForProbe(nowMs)) nowMs += 500;
      durationsMs.push(nowMs - sinceMs);
      endpoint.startProbe(500);
      endpoint.probeFailed(nowMs);
    }
    expect(durationsMs).toEqual([1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
  });
});

describe('the retry budget', () => {
  test('allows ten retries without any exchange', () => {
    const budget = new RetryBudget();
    const granted = Array.from({ length: 20 }, () => budget.withdraw(0)).filter(Boolean);
    expect(granted).toHaveLength(10);
  });

  test('reports each retry that it does not allow', () => {
    const onExhausted = jest.fn();
    const budget = new RetryBudget(onExhausted);
    for (let i = 0; i < 12; i++) budget.withdraw(0);
    expect(onExhausted).toHaveBeenCalledTimes(2);
  });

  test('leaves half of its share for retries when hedges use up theirs', () => {
    const budget = new RetryBudget();
    for (let i = 0; i < 200; i++) budget.deposit(0);
    const hedges = Array.from({ length: 50 }, () => budget.withdrawHedge(0)).filter(Boolean);
    const retries = Array.from({ length: 50 }, () => budget.withdraw(0)).filter(Boolean);
    expect([hedges.length, retries.length]).toEqual([20, 10]);
  });

  test('grows by one for every ten exchanges, which no longer count after ten seconds', () => {
    const budget = new RetryBudget();
    for (let i = 0; i < 100; i++) budget.deposit(500);
    const take = (nowMs: number) =>
      Array.from({ length: 50 }, () => budget.withdraw(nowMs)).filter(Boolean).length;
    expect(take(500)).toBe(20);
    expect(take(9999)).toBe(0);
    expect(take(10_000)).toBe(10);
    expect(take(1_000_000)).toBe(10);
  });
});

describe('the hedge delay', () => {
  function delayAfter(times: (readonly [count: number, ms: number])[], maxMs = 500) {
    const delay = new HedgeDelay(maxMs);
    for (const [count, ms] of times) for (let i = 0; i < count; i++) delay.record(ms);
    return delay.ms;
  }

  test('is the maximum until 100 responses are known, then at least 10 ms', () => {
    expect(delayAfter([[99, 1]])).toBe(500);
    expect(delayAfter([[100, 1]])).toBe(10);
    expect(delayAfter([[100, 1]], 8)).toBe(8);
  });

  test('is the 99th percentile to within a tenth, and at most the maximum', () => {
    const times = [
      [980, 2],
      [10, 50],
      [10, 200],
    ] as const;
    expect(delayAfter([...times])).toBeGreaterThanOrEqual(50);
    expect(delayAfter([...times])).toBeLessThanOrEqual(55);
    expect(delayAfter([[100, 3000]])).toBe(500);
    // Two of 200 responses are slow, which is not more than one in a hundred.
    expect(
      delayAfter([
        [98, 1],
        [2, 200],
        [100, 1],
      ]),
    ).toBe(10);
  });

  test('depends on the last 1000 responses only', () => {
    expect(
      delayAfter([
        [1000, 200],
        [980, 2],
      ]),
    ).toBeGreaterThan(150);
    expect(
      delayAfter([
        [1000, 200],
        [990, 2],
      ]),
    ).toBe(10);
  });
});

describe('the circuit breaker', () => {
  function circuit() {
    const states: CircuitState[] = [];
    const breaker = new CircuitBreaker((state) => states.push(state), true);
    const fail = (times: number, nowMs: number) => {
      for (let i = 0; i < times; i++) breaker.record(breaker.admit(nowMs), true, nowMs);
    };
    const failToConnect = (times: number, nowMs: number) => {
      for (let i = 0; i < times; i++) breaker.record(breaker.admit(nowMs), true, nowMs, false);
    };
    return { breaker, states, fail, failToConnect };
  }

  test('opens when most of the recent exchanges failed', () => {
    const { breaker, states, fail } = circuit();
    for (let i = 0; i < 32; i++) breaker.record(breaker.admit(0), false, 0);
    fail(16, 0);
    expect(breaker.admit(0)).toBe('pass');
    fail(1, 0);
    expect(breaker.admit(0)).toBe('rejected');
    expect(states).toEqual(['open']);
  });

  test('stays closed after a few failures', () => {
    const { breaker, fail } = circuit();
    fail(15, 0);
    expect(breaker.admit(0)).toBe('pass');
  });

  test('if no connection can be established, waits for one, then admits all exchanges as probes, and the first result decides', () => {
    const { breaker, states, failToConnect } = circuit();
    failToConnect(16, 0);
    expect(breaker.admit(5000)).toBe('check');
    breaker.connected(5000);
    for (let i = 0; i < 1000; i++) expect(breaker.admit(5001)).toBe('probe');
    breaker.record('probe', false, 5002, true, 5001);
    expect(breaker.admit(5003)).toBe('pass');
    expect(states).toEqual(['open', 'half-open', 'closed']);
  });

  test('after one second of unlimited probes, admits one probe each second', () => {
    const { breaker, failToConnect } = circuit();
    failToConnect(16, 0);
    breaker.connected(100, 5000);
    const admissions = [5000, 5999, 6000, 6998, 6999, 7000].map((nowMs) => breaker.admit(nowMs));
    expect(admissions).toEqual(['probe', 'probe', 'rejected', 'rejected', 'probe', 'rejected']);
  });

  test('if no probe has started a second after a connection was established, waits for one again', () => {
    const { breaker, failToConnect } = circuit();
    failToConnect(16, 0);
    breaker.connected(100);
    expect([breaker.admit(1100), breaker.state]).toEqual(['check', 'open']);
    breaker.connected(1101);
    expect(breaker.admit(1101)).toBe('probe');
  });

  test('if the first probe after that fails with a connection, admits one after a second', () => {
    const { breaker, failToConnect } = circuit();
    failToConnect(16, 0);
    breaker.connected(100);
    expect([breaker.admit(101), breaker.admit(101)]).toEqual(['probe', 'probe']);
    breaker.record('probe', true, 200, true, 101);
    breaker.record('probe', false, 201, true, 101);
    breaker.connected(300);
    expect(breaker.admit(1199)).toBe('rejected');
    expect([breaker.admit(1200), breaker.admit(1200)]).toEqual(['probe', 'rejected']);
  });

  test('if it fails to connect, waits for a connection again', () => {
    const { breaker, failToConnect } = circuit();
    failToConnect(16, 0);
    breaker.connected(100);
    breaker.record(breaker.admit(101), true, 200, false, 101);
    expect(breaker.admit(201)).toBe('check');
  });

  test('when all probes are cancelled, waits for a connection again', () => {
    const { breaker, failToConnect } = circuit();
    failToConnect(16, 0);
    breaker.connected(100);
    const probes = [breaker.admit(101), breaker.admit(101)];
    for (const probe of probes) {
      expect(breaker.state).toBe('half-open');
      breaker.cancel(probe, 101);
    }
    expect([breaker.state, breaker.admit(102)]).toEqual(['open', 'check']);
  });

  test('waits for a connection if a probe cannot connect, although an earlier exchange gets a late response', () => {
    const { breaker, fail } = circuit();
    fail(16, 0);
    breaker.admit(1000);
    breaker.record('probe', true, 1100, false, 1000);
    breaker.record('pass', false, 1150, true, 500);
    expect(breaker.admit(1200)).toBe('check');
  });

  test.each([
    ['the next hop fails after it accepted a connection', 16, 0],
    ['only the last failure had no connection', 15, 1],
  ])('does not wait for a connection if %s', (_case, withConnection, without) => {
    const { breaker, fail, failToConnect } = circuit();
    fail(withConnection, 0);
    failToConnect(without, 0);
    expect(breaker.admit(1)).toBe('rejected');
    breaker.connected(2);
    expect([breaker.admit(3), breaker.state]).toEqual(['rejected', 'open']);
  });

  test('without connection checks, admits a probe after a second', () => {
    const breaker = new CircuitBreaker();
    for (let i = 0; i < 16; i++) breaker.record('pass', true, 0, false);
    expect([breaker.admit(999), breaker.admit(1000)]).toEqual(['rejected', 'probe']);
  });

  test('ignores exchanges and checks that started before it last opened', () => {
    const { breaker, states } = circuit();
    for (let i = 0; i < 16; i++) breaker.record('pass', true, 100, false, 0);
    breaker.record('probe', false, 150, true, 99);
    breaker.connected(99);
    expect(states).toEqual(['open']);
    breaker.connected(100);
    for (let i = 0; i < 32; i++) breaker.record('pass', true, 200, false, 50);
    expect(states).toEqual(['open', 'half-open']);
  });

  test('lets one probe through after a second, and closes when it succeeds', () => {
    const { breaker, states, fail } = circuit();
    fail(16, 0);
    expect(breaker.admit(999)).toBe('rejected');
    expect(breaker.admit(1000)).toBe('probe');
    expect(breaker.admit(1000)).toBe('rejected');
    breaker.record('probe', false, 1010);
    expect(breaker.admit(1010)).toBe('pass');
    expect(states).toEqual(['open', 'half-open', 'closed']);
  });

  test('opens again for a second when the probe fails, and ignores exchanges that started earlier', () => {
    const { breaker, fail } = circuit();
    fail(16, 0);
    expect(breaker.admit(1000)).toBe('probe');
    breaker.record('pass', false, 1001);
    expect(breaker.state).toBe('half-open');
    breaker.record('probe', true, 1100);
    expect(breaker.admit(2000)).toBe('rejected');
    expect(breaker.admit(2100)).toBe('probe');
  });

  test('while a probe has not ended, lets another one through each second', () => {
    const { breaker, fail } = circuit();
    fail(16, 0);
    const admissions = [1000, 1999, 2000, 2999].map((nowMs) => breaker.admit(nowMs));
    expect(admissions).toEqual(['probe', 'rejected', 'probe', 'rejected']);
    breaker.record('probe', false, 3000, true, 2000);
    expect(breaker.state).toBe('closed');
  });

  test('lets another probe through when one was cancelled', () => {
    const { breaker, fail } = circuit();
    fail(16, 0);
    breaker.cancel(breaker.admit(1000), 1000);
    expect(breaker.admit(1000)).toBe('probe');
  });

  test('ignores failures from more than ten seconds ago', () => {
    const { breaker, fail } = circuit();
    fail(15, 0);
    fail(15, 10_001);
    expect(breaker.admit(10_001)).toBe('pass');
  });
});

test.each([
  [{ code: 'ECONNRESET' }, 'connection_terminated', 'http_response_incomplete'],
  [{ code: 'UND_ERR_SOCKET' }, 'connection_terminated', 'http_response_incomplete'],
  [{ code: 'UND_ERR_RES_CONTENT_LENGTH_MISMATCH' }, 'http_protocol_error', 'http_response_incomplete'],
  [{ code: 'EHOSTUNREACH' }, 'connection_refused', 'connection_refused'],
  [{ code: 'EAFNOSUPPORT' }, 'connection_refused', 'connection_refused'],
  [{ code: 'CERT_HAS_EXPIRED' }, 'tls_certificate_error', 'tls_certificate_error'],
  [{ code: 'ERR_TLS_CERT_ALTNAME_INVALID' }, 'tls_certificate_error', 'tls_certificate_error'],
  [{ code: 'UNABLE_TO_VERIFY_LEAF_SIGNATURE' }, 'tls_certificate_error', 'tls_certificate_error'],
  [{ name: 'HTTPParserError' }, 'http_protocol_error', 'http_protocol_error'],
  [{ code: 'SOMETHING_ELSE' }, 'proxy_internal_error', 'proxy_internal_error'],
])('%j maps to %s before the headers, to %s after them', (error, before, after) => {
  expect(errorCode(error, false)).toBe(before);
  expect(errorCode(error, true)).toBe(after);
});
