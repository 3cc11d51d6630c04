#!/bin/sh
# Puts prometheus and promtool into the folder $1: links to those on the PATH, or else Debian's, unpacked without root.
set -eu
folder=$1
if command -v prometheus > /dev/null && command -v promtool > /dev/null; then
    ln -sf "$(command -v prometheus)" "$(command -v promtool)" "$folder"
    exit
fi
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
chmod 755 "$unpacked"
cd "$unpacked"
apt-get download prometheus || { apt-get update && apt-get download prometheus; } || {
    echo "apt could not download Prometheus. Put prometheus and promtool on the PATH (https://prometheus.io/download)." >&2
    exit 1
}
dpkg-deb --extract prometheus_*.deb .
cd - > /dev/null
cp "$unpacked/usr/bin/prometheus" "$unpacked/usr/bin/promtool" "$folder"
