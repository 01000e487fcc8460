#!/usr/bin/env bash
# Make or find an environment with the tested stack; print its interpreter on stdout.
#
# Usage: requirements/env.sh [VENV] [PYTHON] [STACK]
# STACK is openmmlab (default) or onedl, the maintained fork; their packages share import names, so
# each needs an environment of its own. VENV (default .venv, or .venv-onedl) is created with PYTHON
# (default python3) unless it exists. An environment, or a PYTHON, that already holds the stack is
# used as it is and nothing is said.
set -euo pipefail
cd "$(dirname "$0")/.."
stack=${3:-openmmlab}
default=.venv
[ "$stack" = openmmlab ] || default=.venv-$stack
venv=${1:-$default}
python=${2:-python3}

say() { echo "evit_mm: $*" >&2; }
fail() { say "$*"; exit 1; }

[ -f "requirements/$stack/mmcv.txt" ] ||
    fail "no stack '$stack'; STACK is one of: $(cd requirements && echo */ | tr -d /)"

# Every pinned requirement present in its version?
holds() {
    "$1" - requirements/*.txt "requirements/$stack"/*.txt <<'PY' 2>/dev/null
import sys
from importlib.metadata import PackageNotFoundError, version

from pip._vendor.packaging.requirements import Requirement

for path in sys.argv[1:]:
    for line in open(path):
        text = line.split('#')[0].strip()
        if not text:
            continue
        need = Requirement(text)
        if need.marker and not need.marker.evaluate():
            continue
        try:
            if version(need.name).split('+')[0] not in need.specifier:
                sys.exit(1)
        except PackageNotFoundError:
            sys.exit(1)
PY
}

# asked from elsewhere, since this folder's own metadata would answer for any environment
has_evit_mm() (cd / && PYTHONPATH='' "$1" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("evit_mm"))' 2>/dev/null)

if [ -x "$venv/bin/python" ]; then
    chosen="$venv/bin/python"
elif command -v "$python" >/dev/null && holds "$python"; then
    chosen=$(command -v "$python")
else
    command -v "$python" >/dev/null || fail "no $python here; install Python 3.10 to 3.12 or set PYTHON="
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $version in
        3.10 | 3.11 | 3.12) ;;
        *) fail "$python is Python $version, but the stack needs 3.10 to 3.12; set PYTHON=python3.11 or the like" ;;
    esac
    say "creating $venv with Python $version"
    "$python" -m venv "$venv" >&2 ||
        fail "cannot create $venv; on Debian and Ubuntu: apt-get install python3-venv"
    chosen="$venv/bin/python"
fi

# import names alone do not tell which stack an environment holds
other=$("$chosen" - "requirements/$stack/mmcv.txt" requirements/*/mmcv.txt <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

wanted, *every = sys.argv[1:]
for path in every:
    line = next(line for line in open(path) if '==' in line)
    try:
        version(line.split('==')[0])
    except PackageNotFoundError:
        continue
    if path != wanted:
        print(path.split('/')[1])
PY
)
[ -z "$other" ] || fail "$venv holds the stack '$other'; give VENV= another path for '$stack'"

chosen=$(cd "$(dirname "$chosen")" && pwd)/$(basename "$chosen")

used_as_it_is=1
if ! holds "$chosen"; then
    used_as_it_is=
    free_gb=$(($(df -Pk "$(dirname "$venv")" | awk 'NR == 2 { print $4 }') / 1048576))
    if ! "$chosen" -c 'import torch' 2>/dev/null && [ "$free_gb" -lt 12 ]; then
        fail "the disk has $free_gb GB free where $venv lies, the stack needs 12; free some or set VENV= elsewhere"
    fi
    if ! "$chosen" -c 'import mmcv' 2>/dev/null; then
        command -v c++ >/dev/null || command -v g++ >/dev/null || [ -n "${CXX:-}" ] ||
            fail "no C++ compiler, which mmcv's operators need; on Debian and Ubuntu: apt-get install g++"
        headers=$("$chosen" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
        [ -f "$headers/Python.h" ] ||
            fail "no Python headers in $headers, which mmcv's operators need; on Debian and Ubuntu: apt-get install python3-dev"
    fi
    log=$(mktemp)
    pip_install() {
        "$chosen" -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1 && return
        if grep -q 'No space left' "$log"; then
            fail "the disk is full; free some space or set VENV= elsewhere, then run the same command again"
        fi
        tail -n 30 "$log" >&2
        fail "pip could not install: $*"
    }
    say "installing torch and the build tools (about 2 minutes)"
    pip_install -r requirements/build.txt
    pip_install -r requirements/torch.txt
    say "installing mmengine, mmdet, mmpretrain, timm and the test tools"
    pip_install -r requirements/runtime.txt -r "requirements/$stack/libraries.txt" \
        -r requirements/pages.txt \
        -r requirements/docs.txt -r requirements/tests.txt -r requirements/torch.txt
    say "installing mmcv; unless pip's cache has its wheel, its operators compile now (about 10 minutes, once)"
    export MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" CFLAGS="${CFLAGS:--O2 -g0}"
    pip_install --no-build-isolation -r "requirements/$stack/mmcv.txt"
    if ! "$chosen" -c 'import mmcv.ops' 2>/dev/null; then
        say "the cached mmcv belongs to another torch; compiling it anew"
        pip_install --no-build-isolation --no-cache-dir --force-reinstall --no-deps -r "requirements/$stack/mmcv.txt"
        "$chosen" -c 'import mmcv.ops' || fail "mmcv's operators do not import, see above"
    fi
    rm -f "$log"
fi
if [ -z "$used_as_it_is" ] && ! has_evit_mm "$chosen"; then
    "$chosen" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
fi
echo "$chosen"
