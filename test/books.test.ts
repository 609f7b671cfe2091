import { describeBooks, startBooks, stopBooks } from './books-suite';

beforeAll(() => startBooks({ behind: {}, direct: {} }));
afterAll(stopBooks);

describeBooks();
