#!/usr/bin/env bash
# Find Chromium for the browser tests. As root on Debian, install it if it is missing.
# Without Chromium, the browser tests are skipped with a message.
set -uo pipefail
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
say() { echo "evit_mm: $*" >&2; }
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say 'installing chromium for the browser tests'
    if apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; then
        exit 0
    fi
fi
say 'Chromium is not installed; the browser tests will be skipped. On Debian: apt-get install chromium'
