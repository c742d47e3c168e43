#!/bin/sh
# Makes the development environment `.venv`. `make env` calls it; what cannot work is said before anything is downloaded.
#
#     PYTHON=python3.12 scripts/environment.sh        another interpreter; 3.10 or newer
#     UV=uv scripts/environment.sh                    the fast way, where uv is installed
#     TORCH_INDEX=https://download.pytorch.org/whl/cpu scripts/environment.sh    PyTorch without CUDA, on Linux
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
uv=${UV:-}
torch_index=${TORCH_INDEX:-}

stop() {
    printf 'make env: %s\n' "$*" >&2
    exit 2
}
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }

# What can be seen at once --------------------------------------------------------------------------------------------

command -v "$python" >/dev/null 2>&1 ||
    stop "there is no command $python. Install Python 3.10 or newer, or name yours: make env PYTHON=python3.12"
is_new_enough "$python" ||
    stop "Python 3.10 or newer is needed, and $python is $(version_of "$python"). Name another: make env PYTHON=python3.12"
if [ -e "$venv/bin/python" ] || [ -L "$venv/bin/python" ]; then
    "$venv/bin/python" -c '' 2>/dev/null && is_new_enough "$venv/bin/python" ||
        stop "the Python of $venv is gone, broken or older than 3.10. Remove the folder ($venv) and try again."
    [ "$(version_of "$venv/bin/python")" = "$(version_of "$python")" ] ||
        echo "make env: $venv stays with Python $(version_of "$venv/bin/python"); remove it to use $(version_of "$python")."
elif [ -z "$uv" ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        stop "$python has no module venv. On Debian and Ubuntu: apt install python3-venv (or name another PYTHON)."
fi
[ -z "$uv" ] || command -v "$uv" >/dev/null 2>&1 || stop "there is no command $uv. Leave UV out to use pip."

# The environment, and whether packages can be had --------------------------------------------------------------------

if [ -n "$uv" ]; then
    [ -x "$venv/bin/python" ] || "$uv" venv --python "$python" "$venv"
    [ -z "$torch_index" ] ||
        "$uv" pip install --python "$venv/bin/python" torch -c constraints.txt --index-url "$torch_index"
    UV_FIND_LINKS="${PIP_FIND_LINKS:-}" \
        "$uv" pip install --python "$venv/bin/python" -e '.[dev]' -c constraints.txt
    exit
fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# One small package stands for all: pip alone would try each of them for minutes before it gives up.
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
pip --retries 1 --timeout 10 download --quiet --no-deps --dest "$place" -c constraints.txt iniconfig ||
    stop "pip cannot download packages; its message is above. Check the network, the proxy and pip's settings" \
        "(pip config list)."

echo "make env: Python $(version_of "$venv/bin/python") in $venv. About 150 packages are installed now;" \
    "on Linux, PyTorch brings 3 GB of CUDA unless TORCH_INDEX names an index without it."
pip install --quiet --upgrade pip
# Python compiles the modules that are imported, when they are; pip would compile all of them, one by one.
[ -z "$torch_index" ] || pip install --no-compile torch -c constraints.txt --index-url "$torch_index"
pip install --no-compile -e '.[dev]' -c constraints.txt
