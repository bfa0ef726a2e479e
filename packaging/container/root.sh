#!/bin/sh
# Makes the root of the image: root.sh BINARY FOLDER
set -eu
install -D -m 755 "$1" "$2/usr/local/bin/master-process"
# Engines mount their own file systems on these.
install -d -m 755 "$2/dev" "$2/etc" "$2/proc" "$2/run" "$2/sys"
install -d -m 1777 "$2/tmp"
printf '%s\n' 'root:x:0:0:root:/:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' > "$2/etc/passwd"
printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' > "$2/etc/group"
