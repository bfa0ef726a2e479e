"""Whether the journal has such entries: journalctl -o json | journal.py PATTERN FIELD=VALUE...

The message of an entry has to match the whole PATTERN. There has to be one, and each has to have these fields; what is wrong is printed.
An entry of an earlier run of the service has another _PID: with that field, only those of this process count.
"""

import json
import re
import sys

pattern, *fields = sys.argv[1:]
fields = dict(field.split("=", 1) for field in fields)
pid = fields.pop("_PID", None)
found = [entry for entry in map(json.loads, sys.stdin) if re.fullmatch(pattern, str(entry.get("MESSAGE")))]
found = [entry for entry in found if pid in (None, entry.get("_PID"))]
wrong = [f"{entry['MESSAGE']}: {name}={entry.get(name)}" for entry in found for name in fields if entry.get(name) != fields[name]]
if not found:
    wrong = [f"no entry matches {pattern} (_PID={pid})"]
print(*("   " + line for line in wrong), sep="\n", end="\n" if wrong else "")
sys.exit(bool(wrong))
