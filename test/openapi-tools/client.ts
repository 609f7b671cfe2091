import assert from 'node:assert/strict';
import createClient from 'openapi-fetch';
import type { paths } from '../../dist/openapi/schema';

// A client as a user of the OpenAPI document writes it: its types are generated with the defaults of openapi-typescript.
const api = createClient<paths>({ baseUrl: String(process.argv[2]) });

async function main() {
  const { data: created, response } = await api.POST('/books', {
    body: { title: ' Emma ', author: 'Jane Austen' },
  });
  assert.equal(response.status, 201);
  assert(created);
  // In a response, the year is always there.
  const year: number | null = created.year;
  assert.equal(year, null);

  const path = { id: created.id };
  const replaced = await api.PUT('/books/{id}', {
    params: { path },
    body: { title: 'Emma', author: 'Jane Austen', year: 1815 },
  });
  assert.equal(replaced.data?.year, 1815);

  const { data: page } = await api.GET('/books', { params: { query: { limit: 1 } } });
  assert.equal(page?.items[0]?.title, 'Emma');

  // @ts-expect-error: the author is required.
  const { error } = await api.POST('/books', { body: { title: 'Emma' } });
  assert.equal(error?.code, 'invalid_body');
  assert.equal(error?.errors?.[0]?.pointer, '/author');

  assert.equal((await api.DELETE('/books/{id}', { params: { path } })).response.status, 204);
}

main();
