import type { Services } from './services.mts';
import type { Tour } from './tour.mts';

/** One step of the tour. Its commands, log lines and metrics are shown and checked. */
export interface Step {
  title: string;
  /** What the step does and what to look at. */
  text: string;
  /** Runs the commands. Resolves to the output with the response whose log lines are shown. */
  act: (tour: Tour) => Promise<string>;
  /** How many log lines with the request id of that response each service writes. */
  logLines: { api: number; api2: number };
  /** The metrics of api that grow, and by how much at least. */
  metrics: Record<string, number>;
}

const exchanges = (labels: string) => `http_client_request_duration_seconds_count{next_hop="api2",${labels}}`;
const retries = (kind: string) => `http_client_retries_total{next_hop="api2",kind="${kind}"}`;
const CIRCUIT_STATE = 'http_client_circuit_state{next_hop="api2"}';
const HEDGES_WON = 'http_client_hedges_won_total{next_hop="api2"}';
const JSON_TYPE = "-H 'content-type: application/json'";

const hello = ({ url }: Tour, fault?: string) =>
  `curl -i ${url}/hello${fault === undefined ? '' : ` -H 'x-fault: ${fault}'`}`;
/** Sends a number of requests over one connection, and counts the responses by status. */
const countStatuses = ({ url }: Tour, count: number, options = '') =>
  `curl -s -o /dev/null -w '%{http_code}\\n' ${options}\\\n    '${url}/hello?[1-${count}]' | sort | uniq -c`;

const oneHop: Step = {
  title: 'One request, one hop',
  text: 'The client calls api, and api calls api2. The request id of the client is in the response and in the log lines of both services. server-timing says how long api2 and the whole request took.',
  act: (tour) =>
    tour.run(`${hello(tour)} \\\n    -H 'x-request-id: tour-${Date.now()}'`, {
      'api responds 200 with the text of api2': /^HTTP\/1\.1 200 .*\n\nHello World!$/s,
      'the request id is in the response': /^x-request-id: tour-/m,
      'the time of api2 is in the response': /^server-timing: api2/m,
    }),
  logLines: { api: 1, api2: 1 },
  metrics: { [exchanges('status="200",error=""')]: 1 },
};

const status: Step = {
  title: 'A status is a response',
  text: 'The header x-fault makes api2 respond with 503. A 503 is a response, so api reports it to its client and in Proxy-Status. With more than one replica, api would first retry on another one.',
  act: (tour) =>
    tour.run(hello(tour, 'status;code=503'), {
      'api names the status': /^HTTP\/1\.1 500 .*\n\nError from api2: 503$/s,
      'Proxy-Status names it too': /^proxy-status: api; received-status=503; next-hop=api2$/m,
    }),
  logLines: { api: 1, api2: 1 },
  metrics: { [exchanges('status="503",error=""')]: 1 },
};

const retry: Step = {
  title: 'A connection fails: the retry succeeds',
  text: 'api2 resets the connection of the first attempt. api sends the GET again, because repeating a GET does no harm. The client notices nothing.',
  act: (tour) =>
    tour.run(hello(tour, 'reset;attempt=1'), {
      'api responds 200': /^HTTP\/1\.1 200 /,
      'the first attempt failed, the second one succeeded':
        /^server-timing: api2\.1;.*desc="connection_terminated", api2\.2;.*desc="ok"/m,
      'the second attempt was a retry': /^x-attempts: first;.* retry;/m,
    }),
  logLines: { api: 1, api2: 2 },
  metrics: { [retries('retry')]: 1, [exchanges('status="200",error=""')]: 1 },
};

const hedge: Step = {
  title: 'The first attempt hangs: the hedge wins',
  text: 'api2 never responds to the first attempt. api does not know whether a response is still coming, so it waits a while, then sends the same GET once more. The first response wins, and the other attempt is cancelled (499 in the log of api2). This is a hedge. The wait is the 99th percentile of the recent response times, at most a quarter of the deadline.',
  act: (tour) =>
    tour.run(hello(tour, 'hang;attempt=1'), {
      'api responds 200': /^HTTP\/1\.1 200 /,
      'the first attempt was cancelled, the second one won':
        /^server-timing: api2\.1;.*desc="cancelled", api2\.2;.*desc="ok"/m,
      'the second attempt was a hedge': /^x-attempts: first;.* hedge;/m,
    }),
  logLines: { api: 1, api2: 2 },
  metrics: { [retries('hedge')]: 1, [HEDGES_WON]: 1 },
};

const deadline: Step = {
  title: 'Everything hangs: the deadline ends the request',
  text: 'Now api2 responds to no attempt. api ends the request at its deadline, two seconds by default, and names the failure: http_response_timeout in Proxy-Status, in the log and in the metric.',
  act: (tour) =>
    tour.run(hello(tour, 'hang'), {
      'api responds 500': /^HTTP\/1\.1 500 .*\n\nInternal error contacting api2$/s,
      'Proxy-Status names the failure': /^proxy-status: api; error=http_response_timeout; next-hop=api2$/m,
    }),
  logLines: { api: 1, api2: 2 },
  metrics: { [exchanges('status="",error="http_response_timeout"')]: 1 },
};

const truncated: Step = {
  title: 'The response is cut off',
  text: 'api2 closes the connection in the middle of the body. api reads the whole body before it sends a byte, so the client gets an error rather than half a text.',
  act: (tour) =>
    tour.run(hello(tour, 'truncate'), {
      'api responds 500 without the partial text': /^HTTP\/1\.1 500 .*\n\nInternal error contacting api2$/s,
      'Proxy-Status names the failure': /^proxy-status: api; error=http_response_incomplete; next-hop=api2$/m,
    }),
  logLines: { api: 1, api2: 1 },
  metrics: { [exchanges('status="",error="http_response_incomplete"')]: 1 },
};

const circuit: Step = {
  title: 'api2 keeps failing: the circuit opens, then closes',
  text: 'The first command sends 32 requests whose responses are cut off, and counts the responses by status. When 16 have failed, api stops calling api2: the circuit is open (state 2), and the other requests fail at once with destination_unavailable, as does the one after them. api2 has no log line for it. After a second, one request is let through as a probe. It succeeds, so the circuit closes (state 0).',
  async act(tour) {
    const fail = countStatuses(tour, 32, "-H 'x-fault: truncate' ");
    await tour.run(fail, { 'all 32 responses have status 500': /^ *32 500$/m });
    const output = await tour.run(hello(tour), {
      'the next request fails at once': /^proxy-status: api; error=destination_unavailable; next-hop=api2$/m,
    });
    await tour.showMetric(CIRCUIT_STATE, 2);
    await tour.run(`sleep 1; ${hello(tour)}`, { 'the probe succeeds': /^HTTP\/1\.1 200 / });
    await tour.showMetric(CIRCUIT_STATE, 0);
    return output;
  },
  logLines: { api: 1, api2: 0 },
  metrics: { [exchanges('status="",error="destination_unavailable"')]: 1 },
};

const relay: Step = {
  title: 'The relay: /data',
  text: 'api fetches the JSON of an external API and relays it through a shared cache; Cache-Status says where it came from. Nothing that the client sends goes to the external API, and api2 is not involved. Without Internet access, you see how api names that failure.',
  act: (tour) =>
    tour.run(`curl -i ${tour.url}/data`, {
      'api responds with the data, or names the failure':
        /^HTTP\/1\.1 (200 .*\ncache-status: api; |50[234] .*"code":")/s,
    }),
  logLines: { api: 1, api2: 0 },
  metrics: { 'http_server_request_duration_seconds_count{method="GET",route="/data",': 1 },
};

const idempotency: Step = {
  title: 'A POST is never sent twice, but its client may repeat it',
  text: 'api2 adds a book, then closes the connection in the middle of its response. api passes on what arrived and closes its connection, too; it never sends a POST twice. The log and the metric show 201, the status that was sent; the log also shows the error http_response_incomplete. The client repeats the request with the same Idempotency-Key, and gets the book that the first request added.',
  async act(tour) {
    const add = `curl -i ${tour.url}/books ${JSON_TYPE} \\\n    -H 'idempotency-key: tour-${Date.now()}' \\\n    -d '{"title": "Emma", "author": "Jane Austen"}'`;
    const broken = await tour.run(`${add} -H 'x-fault: truncate'`, {
      'the response of the first POST is cut off': /^HTTP\/1\.1 201 /,
      'the body is incomplete': /[^}]$/,
    });
    const repeated = await tour.run(add, { 'the second POST responds 201': /^HTTP\/1\.1 201 / });
    tour.check('both name the same book', locationOf(broken) === locationOf(repeated));
    await tour.run(`curl -i -X DELETE ${tour.url}${locationOf(repeated)}`, {
      'the book is deleted': /^HTTP\/1\.1 204 /,
    });
    return broken;
  },
  logLines: { api: 1, api2: 1 },
  metrics: {
    'http_server_request_duration_seconds_count{method="POST",route="/books",status="201"}': 1,
    [exchanges('status="201",error=""')]: 1,
  },
};

const conflict: Step = {
  title: 'The gateway: two editors, no lost update',
  text: 'api forwards /books to api2, which owns the database. Two editors have the same version of a book. The first one saves it, which changes its ETag. The second one sends If-Match with the old ETag and gets 412, so the change of the first one is not overwritten.',
  async act(tour) {
    const body = (title: string) => `-d '{"title": "${title}", "author": "Jane Austen"}'`;
    const created = await tour.run(`curl -i ${tour.url}/books ${JSON_TYPE} \\\n    ${body('Emma')}`, {
      'the book is created': /^HTTP\/1\.1 201 /,
    });
    const book = `${tour.url}${locationOf(created)}`;
    const ifMatch = `-H 'if-match: ${headerOf(created, 'etag')}'`;
    const save = (title: string) =>
      `curl -i -X PUT ${book} \\\n    ${JSON_TYPE} \\\n    ${ifMatch} \\\n    ${body(title)}`;
    await tour.run(save('Emma, volume 1'), { 'the first editor saves': /^HTTP\/1\.1 200 / });
    const rejected = await tour.run(save('Emma, volume 2'), {
      'the second editor gets 412': /^HTTP\/1\.1 412 /,
    });
    await tour.run(`curl -i -X DELETE ${book}`, { 'the book is deleted': /^HTTP\/1\.1 204 / });
    return rejected;
  },
  logLines: { api: 1, api2: 1 },
  metrics: {
    [exchanges('status="201",error=""')]: 1,
    [exchanges('status="412",error=""')]: 1,
  },
};

const scale: Step = {
  title: 'Three replicas share the load',
  text: 'Docker starts two more replicas of api2. api resolves the name again every two seconds, finds them, and balances over all three. x-attempts numbers the replicas without revealing their addresses.',
  async act(tour) {
    await tour.run('docker compose up --detach --wait --no-recreate --scale api2=3; sleep 3', {});
    await tour.run(`curl -si '${tour.url}/hello?[1-30]' | grep -o 'replica=[0-9]*' |\n    sort | uniq -c`, {
      'three replicas responded': /^( *\d+ replica=\d+\n?){3}$/,
    });
    return tour.run(hello(tour), { 'api responds 200': /^HTTP\/1\.1 200 / });
  },
  logLines: { api: 1, api2: 1 },
  metrics: { [exchanges('status="200",error=""')]: 31 },
};

/** Sends requests and disturbs one replica; `commands` returns the commands for both. */
function disturb(
  title: string,
  text: string,
  commands: (tour: Tour) => string,
  metrics: Record<string, number> = {},
): Step {
  return {
    title,
    text,
    async act(tour) {
      const name = "$(docker compose ps --format '{{.Name}}' api2 | sort | tail -n 1)";
      await tour.run(`replica=${name}\n${commands(tour)}`, {
        'all responses are 200': /^ *[13]000 200$/m,
      });
      return tour.run(hello(tour), { 'api responds 200': /^HTTP\/1\.1 200 / });
    },
    logLines: { api: 1, api2: 1 },
    metrics: { [exchanges('status="200",error=""')]: 1001, ...metrics },
  };
}

const restart = disturb(
  'A replica restarts',
  'While 3000 requests are sent, one replica restarts. It finishes its requests in flight before it exits; api uses the other two. No request fails.',
  (tour) => `${countStatuses(tour, 3000)} &\ndocker restart "$replica"; wait`,
);

const kill = disturb(
  'A replica is killed',
  'While 3000 requests are sent, one replica gets kill -9, which no program can handle. api retries the interrupted requests on another replica. No request fails.',
  (tour) =>
    `${countStatuses(tour, 3000)} &\ndocker kill --signal KILL "$replica"; docker start "$replica"; wait`,
  { 'http_client_retries_total{next_hop="api2",': 1 },
);

const freeze = disturb(
  'A replica freezes',
  'A frozen replica keeps its connections open and responds to nothing. Hedges to the other replicas win, until api ejects the frozen one. No request fails.',
  (tour) => `docker pause "$replica"\n${countStatuses(tour, 1000)}\ndocker unpause "$replica"`,
  { [HEDGES_WON]: 1 },
);

const headerOf = (response: string, name: string) =>
  new RegExp(`^${name}: (.*)$`, 'im').exec(response)?.[1] ?? '';
const locationOf = (response: string) => headerOf(response, 'location');

/** The ten steps for these services. */
export function stepsFor({ hasDocker }: Services): readonly Step[] {
  return hasDocker
    ? [oneHop, retry, hedge, deadline, circuit, conflict, scale, restart, kill, freeze]
    : [oneHop, status, retry, hedge, deadline, truncated, circuit, relay, idempotency, conflict];
}
