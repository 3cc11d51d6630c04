#!/bin/sh
# The images' entry point: reads the API key from the file that Compose or Kubernetes mounts, then becomes prismoe.
set -eu
if [ -n "${PRISMOE_API_KEY_FILE:-}" ]; then
    if [ ! -r "$PRISMOE_API_KEY_FILE" ] || [ ! -s "$PRISMOE_API_KEY_FILE" ]; then
        echo "prismoe: PRISMOE_API_KEY_FILE names $PRISMOE_API_KEY_FILE, which user $(id -u) can't read or which is empty." >&2
        exit 1
    fi
    VLLM_API_KEY=$(cat "$PRISMOE_API_KEY_FILE")
    export VLLM_API_KEY
fi
exec prismoe "$@"
