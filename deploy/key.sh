#!/bin/sh
# Makes a key and prints it. Appends the key's name, role and digest to the file of keys that the server reads.
# If prismoe is installed, `prismoe key` does the same.
set -eu
if [ $# -ne 3 ]; then
    echo "Give the name of the key, its role (client, metrics or admin) and the file of keys: $0 alice client secrets/api_keys" >&2
    exit 2
fi
echo "$1" | grep -Eqx '[A-Za-z0-9._@-]{1,64}' || {
    echo "$1 can't name a key: use up to 64 letters, digits and . _ @ -" >&2
    exit 2
}
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
digest=$(printf %s "$key" | sha256sum)
# Adds the newline at the end of the file if a hand-written file lacks it; $() removes a newline.
if [ -n "$(tail -c 1 "$3" 2> /dev/null)" ]; then
    echo >> "$3"
fi
echo "$1 $2 ${digest%% *}" >> "$3"
echo "$key"
