#!/bin/sh
# make-venv.sh DIR MINIMUM: make sure that DIR is a virtual environment of Python MINIMUM (3.x) or newer.
#
# An environment that works is kept; one that is broken or too old for what is asked now is made again.
set -eu
venv=$1 minimum=$2
here=$(dirname "$0")

if [ -x "$venv/bin/python" ]; then
    if "$venv/bin/python" -c "import sys, pip; sys.exit(sys.version_info < (3, ${minimum#3.}))" 2>/dev/null; then
        exit 0
    fi
    echo "$venv is broken or older than Python $minimum: making it again."
fi
python=$("$here/find-python.sh" at-least "$minimum")
rm -rf "$venv"
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    echo "$python has no venv/ensurepip, so no virtual environment can be made with it." >&2
    echo "On Debian and Ubuntu: apt-get install python3-venv. Or name another one: make ... PYTHON=/path/to/python3" >&2
    exit 1
fi
echo "Making $venv with $python"
"$python" -m venv "$venv"
# pip before 21.3 cannot do an editable install of a project without setup.py.
"$venv/bin/python" - <<'PY' || "$venv/bin/python" -m pip install --quiet --upgrade "pip>=21.3"
import sys
import pip
sys.exit(tuple(int(part) for part in pip.__version__.split(".")[:2]) < (21, 3))
PY
