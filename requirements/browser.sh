#!/usr/bin/env bash
# Find Chromium for the tests of pages, or install Debian's where that can be done unasked (as root).
# Without one those tests are skipped and say so.
set -uo pipefail
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
say() { echo "evit_mm: $*" >&2; }
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say 'installing chromium, which the tests of pages look at them with'
    if apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; then
        exit 0
    fi
fi
say 'no Chromium, so the tests of pages will be skipped; on Debian: apt-get install chromium'
