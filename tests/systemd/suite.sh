#!/bin/bash
# The units of packaging/systemd/ on a real systemd, which is pid 1: suite.sh BINARY REPOSITORY
#
# It installs the units, starts instances, and disturbs them under load. Run it in a throw-away system only, as root.
set -u
. "$2/tests/systemd/common.sh"
ADDRESS=127.0.0.1:18080
begun=begun

# Runs a command while clients ask, and then until a condition holds. What became of their requests is in $outcome.
under_load() { # TARGET COMMAND CONDITION...
  local target=$1 command=$2; shift 2
  rm -f /tmp/load.*; python3 /srv/load.py "$target" /tmp/load > /tmp/outcome & local clients=$!
  eventually 30 test -e "/tmp/load.$begun"
  eval "$command" || echo "   $command: status $?"
  [ $# -eq 0 ] || eventually 30 "$@" || echo "   not within 30 s: $*"
  sleep 1
  touch /tmp/load.stop; wait $clients
  outcome=$(cat /tmp/outcome); echo "   $command: $outcome"
}
answered() { [[ $outcome == *"ok: "* ]]; }
none_refused() { answered && [[ $outcome != *refused* && $outcome != *"no file"* && $outcome != *"no answer"* && $outcome != *connect* ]]; }
all_answered() { [[ $outcome =~ ^ok:\ [0-9]+\ \( ]]; }

# One instance, with the template as it is but for a shorter watchdog.
instance web 4 "listen=$ADDRESS"
drop_in web WatchdogSec=5s
systemctl daemon-reload
check "systemctl start waits until all workers are ready" systemctl start master-process@web
check "the status is a sentence" status_is web "4 of 4 ready"
main=$(show web MainPID)
worker=$(pgrep -P "$main" python3 | head -n 1)
check "the supervisor runs as a dynamic user" [ "$(stat -c %u "/proc/$main")" -ge 61184 ]
check "its workers have no capability" grep -q '^CapPrm:.0*$' "/proc/$worker/status"
slots=$(find "$(cgroup_of web)" -name 'slot-*' -printf '%f ' | tr ' ' '\n' | sort | xargs)
check "each worker has a cgroup of its own" [ "$slots" = "slot-0 slot-1 slot-2 slot-3" ]
check "eBPF measures, without root" eventually 10 eval 'log_of web | grep -q "monitor: eBPF"'
check "it is in the slice" is web Slice master-process.slice

under_load $ADDRESS 'systemctl reload master-process@web'
check "reload: every request is answered" all_answered
check "reload: the status names it" status_is web "4 of 4 ready, reload 1"
under_load $ADDRESS 'systemctl restart master-process@web' serves web
check "restart: every request is answered" all_answered
under_load $ADDRESS 'kill -9 $(show web MainPID)' eval 'restarts_reach web 1 && serves web'
check "kill -9 of the supervisor: no connection is refused" none_refused
under_load $ADDRESS 'kill -STOP $(show web MainPID)' eval 'restarts_reach web 2 && serves web'
check "watchdog: the stopped loop is killed, and no connection is refused" none_refused
check "watchdog: it was one" eval 'log_of web | grep -q "Watchdog timeout"'
check "the status is new" status_is web "4 of 4 ready"
restarts=0
restarted() { status_is web "4 of 4 ready, $restarts restart$([ $restarts = 1 ] || echo s) in the last hour"; }
for signal in TERM KILL; do
  restarts=$((restarts + 1))
  under_load $ADDRESS "kill -$signal $(pgrep -P "$(show web MainPID)" python3 | head -n 1)" restarted
  check "a worker that is sent $signal: no connection is refused" none_refused
  check "a worker that is sent $signal: the status counts it" restarted
done
main=$(show web MainPID)
OURS="SYSLOG_IDENTIFIER=master-process _SYSTEMD_UNIT=master-process@web.service _TRANSPORT=stdout _PID=$main"
check "journal: a worker that is ready is information" journal_has web "worker \d+ \(pid \d+\) ready after .*: listening" $OURS PRIORITY=6
check "journal: a worker that was killed is a warning" \
  journal_has web "worker \d+ \(pid \d+\) killed by SIGKILL from .*; restarting now" $OURS PRIORITY=4
worker=$(pgrep -P "$main" python3 | head -n 1)
check "journal: a line of a worker has the worker's pid" \
  journal_has web "ready pid=$worker .*" SYSLOG_IDENTIFIER=master-process _SYSTEMD_UNIT=master-process@web.service "_PID=$worker" PRIORITY=6
under_load $ADDRESS 'systemctl stop master-process@web' is web ActiveState inactive
check "stop: connections are refused afterwards" eval '[[ $outcome == *refused* ]]'
check "stop: it is no failure" is web Result success
check "stop: no listener is left" is web NFileDescriptorStore 0

# A reload that fails leaves the service running, and says so.
instance broken 4 from=1:exit=1 "listen=127.0.0.1:18081"
drop_in broken Environment=MASTER_PROCESS_THROTTLE=10ms Environment=MASTER_PROCESS_THROTTLE_MAX=10ms
systemctl daemon-reload; systemctl start master-process@broken
under_load 127.0.0.1:18081 'systemctl reload master-process@broken'
check "a reload that fails: every request is answered" all_answered
check "a reload that fails: the status has the reason" eval '[[ $(show broken StatusText) == "4 of 4 ready, reload 1 failed: slot "* ]]'
check "a reload that fails: it is an error in the journal" journal_has broken "reload 1 failed: .* old workers keep serving" \
  SYSLOG_IDENTIFIER=master-process _SYSTEMD_UNIT=master-process@broken.service PRIORITY=3
systemctl stop master-process@broken

# What has left its worker's session and process group ends with the supervisor.
instance tree 4 orphan=10000 "listen=127.0.0.1:18084"
systemctl start master-process@tree
orphans_run() { [ "$(processes_of tree | wc -l)" -ge 9 ]; }
check "each worker has a process that is nobody's child" eventually 10 orphans_run
processes=$(processes_of tree)
kill -9 "$(show tree MainPID)"
check "kill -9: the service is back" eventually 30 eval 'restarts_reach tree 1 && serves tree'
check "kill -9: nothing of the workers is left" eventually 10 are_gone $processes
systemctl stop master-process@tree

# Socket activation, with the example.
sed 's/8080/18082/' "$REPOSITORY/packaging/systemd/master-process@.socket" > "$UNITS/master-process@act.socket"
instance act 4 listen=127.0.0.1:18082
systemctl daemon-reload; systemctl start master-process@act.socket
check "the socket alone starts nothing" is act ActiveState inactive
begun=asks under_load 127.0.0.1:18082 true serves act
check "activation: a connection starts the service, and every request is answered" all_answered
under_load 127.0.0.1:18082 'systemctl restart master-process@act' serves act
check "activation: restart: every request is answered" all_answered
under_load 127.0.0.1:18082 'kill -9 $(show act MainPID)' eval 'restarts_reach act 1 && serves act'
check "activation: kill -9: no connection is refused" none_refused
under_load 127.0.0.1:18082 'systemctl stop master-process@act 2>/dev/null' serves act
check "activation: stop: the next connection starts it again, and none is refused" none_refused
check "the socket is not kept a second time" is act NFileDescriptorStore 0
systemctl stop master-process@act.socket master-process@act

# A Unix socket in the directory that systemd makes.
instance unix 4 listen=/run/master-process/unix/app.sock
systemctl start master-process@unix
under_load /run/master-process/unix/app.sock 'systemctl restart master-process@unix' serves unix
check "Unix socket: restart: every request is answered" all_answered
under_load /run/master-process/unix/app.sock 'kill -9 $(show unix MainPID)' eval 'restarts_reach unix 1 && serves unix'
check "Unix socket: kill -9: no connection is refused" none_refused
systemctl stop master-process@unix
check "Unix socket: stop removes it" [ ! -e /run/master-process/unix/app.sock ]

# A unit of somebody's own, without notifications, as root and as a user.
for user in root nobody; do
  printf '[Service]\nUser=%s\nTimeoutStopSec=10s\nExecStart=master-process --kill-timeout 42s -- sleep infinity\n' $user \
    > $UNITS/own-$user.service
  systemctl daemon-reload; systemctl start own-$user
  warned() { journalctl --no-pager -o cat -u own-$user | grep -q "TimeoutStopSec=10.0s of own-$user.service is shorter"; }
  check "a stop time-out that is too short is named: $user" eventually 10 warned
  systemctl kill --signal=KILL own-$user; systemctl stop own-$user 2>/dev/null
done

# A hundred instances at once.
names=$(seq -f 'master-process@many%g' 100)
for number in $(seq 100); do instance "many$number" 1 "listen=127.0.0.1:$((19000 + number))"; done
began=$(date +%s%N)
check "a hundred instances start" systemctl start $names
echo "   $((($(date +%s%N) - began) / 1000000)) ms"
running=$(systemctl list-units --plain --no-legend --state=running 'master-process@many*' | wc -l)
check "a hundred instances run" [ "$running" = 100 ]
check "each says so" [ "$(systemctl show -P StatusText $names | grep -c '^1 of 1 ready$')" = 100 ]
check "a hundred instances reload" systemctl reload $names
check "a hundred instances stop" systemctl stop $names
check "none of them failed" [ -z "$(systemctl list-units --plain --no-legend --state=failed 'master-process@*')" ]

# The service manager of a user. It runs as a service here, because there is no login.
useradd --create-home --shell /bin/sh someone 2>/dev/null
home=/home/someone
mkdir -p $home/.config/systemd/user $home/.config/master-process
cp "$REPOSITORY/packaging/systemd/user/master-process@.service" $home/.config/systemd/user/
printf 'COMMAND=/usr/bin/python3 -S -E /srv/worker.py listen=127.0.0.1:18083\nMASTER_PROCESS_WORKERS=4\n' \
  > $home/.config/master-process/web.env
chown -R someone: $home
systemd-run --quiet --unit=user-manager -p User=someone -p Delegate=yes -p RuntimeDirectory=someone -p Type=notify \
  -E XDG_RUNTIME_DIR=/run/someone -E HOME=$home /lib/systemd/systemd --user
as_user() { runuser -u someone -- env XDG_RUNTIME_DIR=/run/someone HOME=$home systemctl --user "$@"; }
user_serves() { [ "$(as_user show -P StatusText master-process@web)" = "4 of 4 ready" ]; }
check "user: start" as_user start master-process@web
check "user: the status is a sentence" user_serves
under_load 127.0.0.1:18083 'as_user reload master-process@web'
check "user: reload: every request is answered" all_answered
under_load 127.0.0.1:18083 'as_user restart master-process@web' user_serves
check "user: restart: every request is answered" all_answered
under_load 127.0.0.1:18083 'kill -9 $(as_user show -P MainPID master-process@web)' user_serves
check "user: kill -9: no connection is refused" none_refused
check "user: stop" as_user stop master-process@web
systemctl stop user-manager

end web broken act unix tree
