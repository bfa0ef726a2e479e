'use strict';

// An ordinary HTTP server: it binds a port by itself and contains nothing for the supervisor. Run four of it on one port:
//
//     cargo run --release -- -w 4 -- node examples/hello.js
//     curl http://localhost:3000
//
// Each answer names the worker that gave it. PORT chooses another port.
const http = require('node:http');

const { PORT = '3000', WORKER_INDEX = 'none', RELOAD_INDEX = '0' } = process.env;

const server = http.createServer((request, response) => {
  response.setHeader('Content-Type', 'text/plain');
  response.end(`hello from worker ${WORKER_INDEX}, pid ${process.pid}, after ${RELOAD_INDEX} reloads\n`);
});

server.listen(Number(PORT));
