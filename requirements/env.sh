#!/usr/bin/env bash
# Print the path of an interpreter that has all libraries; install them first if needed.
# Usage: env.sh [VENV] [PYTHON]
#
# VENV is created with PYTHON and kept at the pinned versions. If an existing environment at VENV, or
# PYTHON itself, already has the libraries, it is used unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv} python=${2:-python3}
stamp=$venv/evit_mm.installed # the installed requirements; empty while the installation is incomplete
libraries='torch torchvision cv2 mmengine mmcv mmdet'
gigabytes=10

fail() { echo "evit_mm: $*" >&2; exit 1; }
use() { realpath -s "$1"; exit; }
wanted() { cat setup.py requirements/constraints.txt; }
# run from /, so that the checkout is not mistaken for an installed package
has() (
    program=$(realpath -s "$1") && cd / && shift && "$program" -c \
        'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"
) 2>/dev/null

if [ -e "$stamp" ]; then
    wanted | cmp -s - "$stamp" && use "$venv/bin/python"
elif [ -x "$venv/bin/python" ]; then
    has "$venv/bin/python" $libraries && use "$venv/bin/python"
    ! has "$venv/bin/python" torch ||
        fail "$venv has torch, but not all of $libraries; install the missing ones, or set VENV= to a new path"
else
    path=$(command -v "$python") ||
        fail "$python is not installed; install Python 3.10 to 3.13, or set PYTHON= to its path"
    has "$path" $libraries && use "$path"
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$path" --version 2>&1) is too old; set PYTHON= to Python 3.10 to 3.13"
    "$path" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$path has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    "$path" -m venv "$venv" >&2 || fail "cannot create $venv (see above); set VENV= to another path"
fi

free=$(($(df -Pk "$venv" | awk 'NR == 2 { print $4 }') / 1048576))
has "$venv/bin/python" torch || [ "$free" -ge "$gigabytes" ] ||
    fail "$venv needs $gigabytes GB, but only $free GB are free; free some space, or set VENV= to another path"
: >"$stamp"
log=$venv/install.log
echo "evit_mm: installing torch, mmdet and other libraries into $venv; this takes about 3 minutes" >&2
"$venv/bin/python" -m pip install --disable-pip-version-check \
    --no-compile -c requirements/constraints.txt -e '.[all]' >"$log" 2>&1 || {
    grep -q 'No space left' "$log" && fail "the disk is full; free some space and repeat the command"
    grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|SSLError' "$log" &&
        fail "pip cannot reach the package index; check the network or the proxy and repeat the command ($log)"
    fail "pip failed: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log"); the complete output is in $log"
}
wanted >"$stamp"
use "$venv/bin/python"
