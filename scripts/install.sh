#!/bin/sh
# install.sh VENV ARGUMENT...: `pip install ARGUMENT...` into VENV, done by uv where it can be had.
#
# uv needs 7 s for an environment of the matrix where pip needs 84. It does not read pip's configuration: where pip is told
# of another index, and where uv cannot be had or fails, pip does the work and has the last word.
set -eu
venv=$1
shift
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! pip config list 2>/dev/null | grep -q 'index'; then
    if [ -x "$venv/bin/uv" ] || pip install --quiet --only-binary=:all: uv; then
        # Compiled as pip does it: else the first start of every program pays for it.
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --compile-bytecode "$@" && exit 0
    fi
    echo "uv could not install it; pip tries."
fi
pip install --quiet "$@"
