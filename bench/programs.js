// The programs that npm run bench compares.
const API_FILE = '../dist/services/api/main.js';
export const API2_FILE = '../dist/services/api2/main.js';

export const API = 'api';
export const COLLAPSING_API = 'api, COLLAPSE=on';
export const TUTORIAL = 'Express 4 + isomorphic-fetch (tutorial)';
export const PROXY = 'Express 5 + http-proxy-middleware';
export const FASTIFY = 'Fastify + @fastify/reply-from';
export const EXPRESS = 'Express 5 + undici';
export const NODE_HTTP = 'node:http + undici';

/** The programs by name. `hasCompileCache`: the program starts with V8's compile cache, as in its image. */
export const PROGRAMS = {
  [API]: { file: API_FILE, hasCompileCache: true },
  [COLLAPSING_API]: { file: API_FILE, hasCompileCache: true, env: { COLLAPSE: 'on' } },
  [TUTORIAL]: { file: 'peers/tutorial.js' },
  [PROXY]: { file: 'peers/http-proxy-middleware.js' },
  [FASTIFY]: { file: 'peers/reply-from.js' },
  [EXPRESS]: { file: 'peers/express-undici.js' },
  [NODE_HTTP]: { file: 'peers/raw.js' },
};
/** The pairs that are compared at full load and at a quarter of it. */
export const PAIRS = [
  ...[TUTORIAL, PROXY, FASTIFY, EXPRESS, NODE_HTTP].map((peer) => [API, peer]),
  [COLLAPSING_API, NODE_HTTP],
];

export const OUR_CHAIN = 'api and api2';
export const TUTORIAL_CHAIN = 'Express 4 + isomorphic-fetch, Express 4 (tutorial)';
export const NODE_HTTP_CHAIN = 'node:http + undici, node:http';
/** The programs of each chain of two services. */
export const CHAINS = {
  [OUR_CHAIN]: { file: API_FILE, nextFile: API2_FILE },
  [TUTORIAL_CHAIN]: { file: 'peers/tutorial.js', nextFile: 'peers/tutorial-api2.js' },
  [NODE_HTTP_CHAIN]: { file: 'peers/raw.js', nextFile: 'peers/raw-api2.js' },
};

export const BOOKS_DIRECT = '`GET /books?limit=20` directly from api2';
export const BOOKS_THROUGH_API = '`GET /books?limit=20` through api';
export const HUNDRED_BOOKS_THROUGH_API = '`GET /books?limit=100` through api';

export const CONNECTIONS = 64;
export const MANY_CONNECTIONS = 4096;
/** The numbers of connections that are compared with CONNECTIONS, for each program. */
export const CONNECTION_COUNTS = {
  [API]: [1, 512, MANY_CONNECTIONS],
  [EXPRESS]: [MANY_CONNECTIONS],
  [NODE_HTTP]: [MANY_CONNECTIONS],
};
export const MEMORY_LIMIT_MIB = 256;
