import { describeBooksApi, startBookServices, stopBookServices } from './books-suite';

beforeAll(() => startBookServices({ behindApi: {}, direct: {} }));
afterAll(stopBookServices);

describeBooksApi();
