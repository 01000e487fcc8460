#!/usr/bin/env bash
# Print the path of an interpreter with all libraries. Usage: env.sh [VENV] [PYTHON]
#
# If VENV does not exist, it is created with PYTHON, and the pinned versions are installed. An
# existing environment at VENV, or PYTHON itself, is used without changes if it has the libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv} python=${2:-python3}
stamp=$venv/evit_mm.installed # the installed requirements; empty during the installation
libraries='torch torchvision cv2 mmengine mmcv mmdet'
gigabytes=10

fail() { echo "evit_mm: $*" >&2; exit 1; }
use() { realpath -s "$1"; exit; }
wanted() { cat setup.py requirements/constraints.txt; }
# from /, because the current folder is importable and this checkout must not count as installed
has() (
    program=$(realpath -s "$1") && cd / && shift && "$program" -c \
        'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"
) 2>/dev/null

if [ -e "$stamp" ]; then
    wanted | cmp -s - "$stamp" && use "$venv/bin/python"
elif [ -x "$venv/bin/python" ]; then
    has "$venv/bin/python" $libraries && use "$venv/bin/python"
    ! has "$venv/bin/python" torch ||
        fail "$venv has torch but lacks some of: $libraries; install the missing ones, or set VENV= to a new path"
else
    path=$(command -v "$python") ||
        fail "$python is not installed; install Python 3.10 to 3.13, or set PYTHON= to its path"
    has "$path" $libraries && use "$path"
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$path" --version 2>&1) is too old; set PYTHON= to Python 3.10 to 3.13"
    "$path" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$path has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    "$path" -m venv "$venv" >&2 || fail "cannot create $venv, see above; set VENV= to another path"
fi

free=$(($(df -Pk "$venv" | awk 'NR == 2 { print $4 }') / 1048576))
has "$venv/bin/python" torch || [ "$free" -ge "$gigabytes" ] ||
    fail "$venv needs $gigabytes GB, but the disk has $free GB free; free space, or set VENV= to another disk"
: >"$stamp"
log=$venv/install.log
echo "evit_mm: installing torch, mmdet and other packages into $venv (about 3 minutes)" >&2
"$venv/bin/python" -m pip install --disable-pip-version-check \
    --no-compile -c requirements/constraints.txt -e '.[all,executorch]' >"$log" 2>&1 || {
    grep -q 'No space left' "$log" && fail "the disk is full; free some space, then run the command again"
    grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|SSLError' "$log" &&
        fail "pip cannot reach the package index; check the network and the proxy, then run the command again (log: $log)"
    fail "pip failed: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log"); see $log"
}
wanted >"$stamp"
use "$venv/bin/python"
