# What the suites of this folder have in common: each is started as SUITE BINARY REPOSITORY, and begins by reading this file.
#
# It installs the units. Each check is one line that begins with "ok" or "not ok", and `end` ends with 1 if one of them is "not ok".
BINARY=$1 REPOSITORY=$2
FIXTURES=$REPOSITORY/tests UNITS=/etc/systemd/system
failed=0

check() { # WHAT CONDITION...
  local what=$1; shift
  if "$@"; then echo "ok - $what"; else echo "not ok - $what"; failed=1; fi
}
eventually() { # SECONDS CONDITION...: a condition with a deadline
  local until=$(($(date +%s) + $1)); shift
  until "$@"; do [ "$(date +%s)" -lt "$until" ] || return 1; sleep 0.05; done
}
show() { systemctl show -P "$2" "master-process@$1"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
restarts_reach() { [ "$(show "$1" NRestarts)" -ge "$2" ]; }
status_is() { is "$1" StatusText "$2"; }
serves() { is "$1" ActiveState active && status_is "$1" "4 of 4 ready"; }
log_of() { journalctl --no-pager -o cat -u "master-process@$1"; }

instance() { # NAME WORKERS WORD...
  local name=$1 workers=$2; shift 2
  printf 'COMMAND=/usr/bin/python3 -S -E /srv/worker.py %s\nMASTER_PROCESS_WORKERS=%s\n' "$*" "$workers" \
    > "/etc/master-process/$name.env"
}
drop_in() { # NAME LINE...
  local folder=$UNITS/master-process@$1.service.d; shift
  mkdir -p "$folder"; { echo '[Service]'; printf '%s\n' "$@"; } > "$folder/test.conf"
}

# Entries of the journal of an instance whose message matches, and the fields that each of them has; see journal.py.
journal_has() { # NAME PATTERN FIELD=VALUE...
  local name=$1; shift
  journalctl --sync; journalctl --no-pager -o json -u "master-process@$name" | python3 -S -E "$FIXTURES/systemd/journal.py" "$@"
}
cgroup_of() { echo "/sys/fs/cgroup$(show "$1" ControlGroup)"; }
processes_of() { find "$(cgroup_of "$1")" -name cgroup.procs -exec cat {} +; }
are_gone() { for pid in "$@"; do [ ! -e "/proc/$pid" ] || return 1; done; }

# Ends the suite; with a failure, after the logs of these instances.
end() { # NAME...
  if [ $failed = 1 ]; then
    for name in "$@"; do echo "--- $name"; log_of "$name" | grep -v '^[a-z_]* pid=' | tail -n 60; done
  fi
  exit $failed
}

mkdir -p /usr/local/bin /etc/master-process /srv "$UNITS"
ln -sf "$BINARY" /usr/local/bin/master-process
cp "$FIXTURES/fixtures/worker.py" "$FIXTURES/systemd/load.py" /srv/; chmod 755 /srv /srv/*.py
cp "$REPOSITORY"/packaging/systemd/master-process{@.service,.slice} "$UNITS/"
systemd-tmpfiles --create "$REPOSITORY/packaging/systemd/master-process.tmpfiles.conf"
systemctl daemon-reload
echo "systemd $(systemctl --version | sed -n '1s/systemd //p'), Linux $(uname -r)"
