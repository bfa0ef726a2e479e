#!/bin/bash
# The limits of the workers on a real systemd, which is pid 1 and has all controllers of cgroups: limits.sh BINARY REPOSITORY
#
# It installs the units and starts instances. Run it in a throw-away system only, as root; a machine that is emulated will do.
set -u
. "$2/tests/systemd/common.sh"

slow=${MASTER_PROCESS_SLOW:-1}
two_serve() { is "$1" ActiveState active && status_is "$1" "2 of 2 ready"; }
row_of() { # CGROUP: its line of systemd-cgtop, without the path
  systemd-cgtop --batch --iterations=1 --depth=9 --raw | awk -v "path=$1" '$1 == path { $1 = ""; print }'
}

controllers=$(cat /sys/fs/cgroup/cgroup.controllers)
has_controllers() { for name in cpu memory pids; do [[ " $controllers " == *" $name "* ]] || return 1; done; }
check "this system has the controllers: $controllers" has_controllers

instance limited 2 listen=127.0.0.1:18080
drop_in limited Environment=MASTER_PROCESS_WORKER_MEMORY_MAX=48M Environment=MASTER_PROCESS_WORKER_CPU_MAX=150% \
  Environment=MASTER_PROCESS_WORKER_PIDS_MAX=40 TimeoutStartSec=$((90 * slow)) WatchdogSec=$((30 * slow))
systemctl daemon-reload
check "systemctl start waits until all workers are ready" systemctl start master-process@limited
check "the status is a sentence" two_serve limited
main=$(show limited MainPID)
group=$(show limited ControlGroup)
supervisor=$(basename "$(find "$(cgroup_of limited)" -maxdepth 1 -name 'master-process-*')")
slot() { echo "$(cgroup_of limited)/$supervisor/slot-$1"; }
check "the supervisor is a dynamic user, in a cgroup of its own" \
  eval '[ "$(stat -c %u "/proc/$main")" -ge 61184 ] && [ "$(cut -d: -f3 "/proc/$main/cgroup")" = "$group/supervisor" ]'
for number in 0 1; do
  check "slot $number has the limits" \
    [ "$(cat "$(slot $number)"/{memory.max,memory.oom.group,cpu.max,pids.max} | xargs)" = "50331648 1 150000 100000 40" ]
  row=$(row_of "${group#/}/$supervisor/slot-$number")
  echo "   systemd-cgtop: slot-$number: $row"
  # Processes, CPU time (unknown in a first look), bytes of memory.
  check "systemd-cgtop shows slot $number with its processes and its memory" \
    eval '[[ $row =~ ^\ *([0-9]+)\ [^\ ]+\ ([0-9]+)\  ]] && [ ${BASH_REMATCH[1]} -ge 1 ] && [ ${BASH_REMATCH[2]} -gt 1000000 ]'
done

# A process of the worker needs more memory than it may: only the worker ends, and the service goes on.
before=$(show limited NRestarts)
kept=$(cat "$(slot 1)"/*/cgroup.procs)
oom_pid=$(head -n 1 "$(slot 0)"/worker-*/cgroup.procs)
(
  echo "$BASHPID" > "$(echo "$(slot 0)"/worker-*/cgroup.procs)"
  exec python3 -S -E -c 'kept = []
while True: kept.append(b"x" * (1 << 22))'
)
check "the worker without memory is ended and replaced" eventually $((30 * slow)) eval 'are_gone $oom_pid && [[ $(show limited StatusText) == "2 of 2 ready, 1 restart"* ]]'
check "the journal says at which limit" journal_has limited \
  "worker 0 \(pid $oom_pid\) killed by the OOM killer at --worker-memory-max \(48.0 MiB\) after .*" PRIORITY=4
check "the other one goes on" [ "$(cat "$(slot 1)"/*/cgroup.procs)" = "$kept" ]
check "the service goes on" eval 'is limited ActiveState active && is limited NRestarts "$before" && is limited MainPID "$main"'
check "the cgroup of the slot is used again, with the limits" [ "$(cat "$(slot 0)/memory.max")" = 50331648 ]

check "systemctl reload" systemctl reload master-process@limited
check "a slot has a second cgroup with the limits after a reload" [ "$(cat "$(slot 0.2)/memory.max")" = 50331648 ]

# After a crash systemd makes a new cgroup, and limits are set in that.
kill -9 "$main"
check "kill -9: the service is back" eventually $((30 * slow)) eval 'restarts_reach limited 1 && two_serve limited'
supervisor=$(basename "$(find "$(cgroup_of limited)" -maxdepth 1 -name 'master-process-*')")
check "kill -9: the limits are set again" [ "$(cat "$(slot 1)/memory.max")" = 50331648 ]
check "stop" systemctl stop master-process@limited
check "stop: it is no failure" is limited Result success

# Without delegation a limit cannot be set: one line says why, and the service is not started over and over.
instance undelegated 2 listen=127.0.0.1:18081
drop_in undelegated Delegate=no Environment=MASTER_PROCESS_WORKER_MEMORY_MAX=96M Restart=no
systemctl daemon-reload
check "without Delegate= the start fails" eval '! systemctl start master-process@undelegated 2> /dev/null'
check "without Delegate= the journal says why" journal_has undelegated \
  "master-process: --worker-memory-max: the cgroup is not delegated to this process; expected Delegate=yes in the unit, or --cgroup PATH"
check "without Delegate= the status says why" eval '[[ $(show undelegated StatusText) == *"--worker-memory-max"* ]]'

# What doctor says of such units.
asked() { # PROPERTY...
  systemd-run --quiet --wait --pipe --collect "$@" "$BINARY" doctor --json --worker-memory-max 96M --worker-cpu-max 50% --worker-pids-max 40 |
    python3 -S -E -c 'import json, sys
row = next(row for row in json.load(sys.stdin)["checks"] if row["check"] == "cgroup_limits")
print(row["state"], *[int(row["facts"]["has_" + name]) for name in ("memory", "cpu", "pids")], row["fix"])'
}
says() { # WHAT EXPECTED ACTUAL
  check "$1" [ "$3" = "$2" ]; [ "$3" = "$2" ] || echo "   $3"
}
says "doctor: with Delegate=yes" "ok 1 1 1 None" "$(asked -p Delegate=yes)"
# systemd counts the tasks and the memory of every unit, so these controllers are there in each.
says "doctor: with some controllers only" "missing 1 0 1 add to [Service] of its unit: Delegate=cpu memory pids" \
  "$(asked -p Delegate=memory -p MemoryAccounting=yes)"
says "doctor: without delegation" "missing 0 0 0 add to [Service] of its unit: Delegate=yes" "$(asked)"

end limited undelegated
