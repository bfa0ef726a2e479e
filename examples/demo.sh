#!/bin/sh
# The demo of the README: a reload under load. Needs node, and the port 3000 or $PORT.
#
#     cargo build --release && sh examples/demo.sh
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/target/release:$PATH"
export PORT="${PORT:-3000}"

say() { printf '$ %s\n' "$*"; }

say "master-process -w 2 -- node examples/hello.js &"
master-process -w 2 -- node examples/hello.js &
supervisor=$!
trap 'kill "$supervisor" 2>/dev/null || true' EXIT
until curl -s "localhost:$PORT" >/dev/null; do sleep 0.1; done

say "node examples/load.js http://localhost:$PORT 4 &"
node examples/load.js "http://localhost:$PORT" 4 &
load=$!
sleep 1
say "kill -HUP %1"
kill -HUP "$supervisor"
wait "$load"
say "kill %1"
trap - EXIT
kill "$supervisor"
wait "$supervisor"
