/// <reference lib="dom" />
import { chromium } from 'playwright-core';
import { request } from 'undici';
import { type Program, start } from './programs';

// Makes docs/page.png: `npm run screenshot` starts both built services on free ports, uses the page, and stops them.
const FILE = 'docs/page.png';
const CHROMIUM = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
};
const WARM_UP_REQUESTS = 100;
const BOOKS = [
  { title: 'Emma', author: 'Jane Austen', year: 1815 },
  { title: 'Middlemarch', author: 'George Eliot', year: 1871 },
];

async function main() {
  const api2 = await start('api2', { FAULTS: 'on' });
  const api = await start('api', { API2_URL: api2.url, FAULTS: 'on' });
  try {
    for (const book of BOOKS) await sendJson('POST', `${api.url}/books`, book);
    // The first requests of a process take longer than those that follow.
    for (let i = 0; i < WARM_UP_REQUESTS; i++) await (await request(`${api.url}/hello`)).body.dump();
    await takeScreenshot(api);
  } finally {
    await api.stop();
    await api2.stop();
  }
}

/** Takes the screenshot after a successful request and one whose hedge wins. */
async function takeScreenshot({ url }: Program) {
  const browser = await chromium.launch(CHROMIUM);
  try {
    const page = await browser.newPage({
      viewport: { width: 1280, height: 760 },
      deviceScaleFactor: 1.5,
      colorScheme: 'light',
    });
    await page.goto(url);
    const sayHello = async (attempts: number) => {
      await page.getByRole('button', { name: 'Say hello' }).click();
      await page.locator(`#attempts li:last-child:nth-child(${attempts})`).waitFor();
    };
    await sayHello(1);
    await page.getByRole('combobox', { name: 'Fault' }).selectOption('hang;attempt=1');
    await sayHello(2);
    await page.screenshot({ path: FILE, fullPage: true });
  } finally {
    await browser.close();
  }
}

async function sendJson(method: 'POST', url: string, value: object) {
  const headers = { 'content-type': 'application/json' };
  const { statusCode, body } = await request(url, { method, headers, body: JSON.stringify(value) });
  await body.dump();
  if (statusCode >= 400) throw new Error(`${method} ${url}: ${statusCode}`);
}

void main();
