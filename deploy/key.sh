#!/bin/sh
# Makes a key and prints it once; the file of keys that the server reads gets its name, role and digest.
# `prismoe key` does the same where prismoe is installed.
set -eu
if [ $# -ne 3 ]; then
    echo "Say whose key it is, its role (client, metrics or admin) and the file of keys: $0 alice client secrets/api_keys" >&2
    exit 2
fi
echo "$1" | grep -Eqx '[A-Za-z0-9._@-]{1,64}' || {
    echo "$1 can't name a key: use up to 64 letters, digits and . _ @ -" >&2
    exit 2
}
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
digest=$(printf %s "$key" | sha256sum)
# A file that was written by hand may lack its last newline; $() takes it away where it is there.
if [ -n "$(tail -c 1 "$3" 2> /dev/null)" ]; then
    echo >> "$3"
fi
echo "$1 $2 ${digest%% *}" >> "$3"
echo "$key"
