#!/usr/bin/env bash
# Print an interpreter that has the stack; install the stack if need be: env.sh [VENV] [PYTHON]
#
# VENV is created with PYTHON and kept at the pinned versions. Another environment at VENV, or PYTHON
# itself, is used as it is if it has the libraries, and nothing is installed into it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv} python=${2:-python3}
stamp=$venv/evit_mm.installed # what was installed; empty until all of it is
libraries='torch torchvision cv2 mmengine mmcv mmdet'
gigabytes=10

fail() { echo "evit_mm: $*" >&2; exit 1; }
use() { realpath -s "$1"; exit; }
wanted() { cat setup.py requirements/constraints.txt; }
# from /, where this checkout does not count as installed
has() (
    program=$(realpath -s "$1") && cd / && shift && "$program" -c \
        'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"
) 2>/dev/null

if [ -e "$stamp" ]; then
    wanted | cmp -s - "$stamp" && use "$venv/bin/python"
elif [ -x "$venv/bin/python" ]; then
    has "$venv/bin/python" $libraries && use "$venv/bin/python"
    ! has "$venv/bin/python" torch ||
        fail "$venv has torch, but not all of $libraries; install the rest, or give VENV= a new path"
else
    path=$(command -v "$python") ||
        fail "$python is not installed; install Python 3.10 to 3.13, or name it by PYTHON="
    has "$path" $libraries && use "$path"
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$path" --version 2>&1) is too old; name Python 3.10 to 3.13 by PYTHON="
    "$path" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$path has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    "$path" -m venv "$venv" >&2 || fail "cannot create $venv, see above; set VENV= elsewhere"
fi

free=$(($(df -Pk "$venv" | awk 'NR == 2 { print $4 }') / 1048576))
has "$venv/bin/python" torch || [ "$free" -ge "$gigabytes" ] ||
    fail "$venv needs $gigabytes GB, the disk has $free GB free; free some, or set VENV= elsewhere"
: >"$stamp"
log=$venv/install.log
echo "evit_mm: installing torch, mmdet and the rest into $venv, about 3 minutes" >&2
"$venv/bin/python" -m pip install --disable-pip-version-check \
    --no-compile -c requirements/constraints.txt -e '.[all]' >"$log" 2>&1 || {
    grep -q 'No space left' "$log" && fail "the disk is full; free some space, then repeat the command"
    grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|SSLError' "$log" &&
        fail "pip cannot reach the package index; see to the network or the proxy, then repeat the command ($log)"
    fail "pip failed: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log"); all it said is in $log"
}
wanted >"$stamp"
use "$venv/bin/python"
