#!/bin/sh
# Makes the image $1 with Docker: a minimal Debian with Python where Docker's python images have it, and this machine's certificates.
set -eu
certificates=/etc/ssl/certs/ca-certificates.crt
# shellcheck disable=SC2016 # mmdebstrap expands what its hooks say.
mmdebstrap --quiet --variant=minbase --include=python3-venv,ca-certificates \
    --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --customize-hook='chroot "$1" python3 -m venv /usr/local' \
    --customize-hook="copy-in $certificates /etc/ssl/certs" \
    bookworm - http://deb.debian.org/debian | docker import --change "ENV PIP_CERT=$certificates" - "$1"
