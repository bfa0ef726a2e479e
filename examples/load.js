'use strict';

// Sends requests as fast as a server answers, from 16 clients, each on a connection of its own, and prints how many failed:
//
//     node examples/load.js http://localhost:3000 5
//
// The last argument is the time in seconds.
const http = require('node:http');

const [url = 'http://localhost:3000', seconds = '5'] = process.argv.slice(2);
const end = Date.now() + Number(seconds) * 1000;
const answers = new Map();
let failed = 0;

function send() {
  return new Promise((resolve) => {
    const fails = () => { failed += 1; resolve(); };
    const request = http.get(url, { agent: false, timeout: 10_000 }, (response) => {
      let body = '';
      response.on('data', (data) => { body += data; });
      response.on('aborted', fails);
      response.on('end', () => {
        const release = /after \d+ reloads/.exec(body)?.[0] ?? 'without a release';
        answers.set(release, (answers.get(release) ?? 0) + 1);
        resolve();
      });
    });
    request.on('timeout', () => request.destroy(new Error('timeout')));
    request.on('error', fails);
  });
}

async function client() {
  while (Date.now() < end) await send();
}

Promise.all(Array.from({ length: 16 }, client)).then(() => {
  const total = [...answers.values()].reduce((sum, count) => sum + count, failed);
  const parts = [...answers].map(([release, count]) => `${count} answered ${release}`);
  console.log(`${total} requests: ${parts.join(', ')}, ${failed} failed`);
});
