#!/bin/sh
# Print the path of an interpreter that can make a virtual environment, or say why there is none.
#
#   find-python.sh at-least 3.10   the `python3` of the PATH if it is new enough, else the newest one found
#   find-python.sh exactly 3.9     that minor version
#
# Looks at $PYTHON (for `at-least` only; then nothing else is tried), the PATH, and pyenv's versions.
set -u
mode=$1 wanted=$2
minor=${wanted#3.}
newest=15

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

fits() {
    version=$(version_of "$1") || return 1
    [ "${version%%.*}" = 3 ] || return 1
    if [ "$mode" = exactly ]; then [ "$version" = "$wanted" ]; else [ "${version#3.}" -ge "$minor" ]; fi
}

# The real path behind a pyenv shim: a venv made from a shim would depend on pyenv's current choice.
report() { "$1" -c 'import sys; print(sys.executable)'; exit 0; }

if [ "$mode" = at-least ] && [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" && report "$PYTHON"
    echo "PYTHON=$PYTHON is not a Python $wanted or newer (it says: $(version_of "$PYTHON" || echo 'cannot be run'))." >&2
    exit 1
fi

if [ "$mode" = exactly ]; then
    first=$minor last=$minor
else
    first=$newest last=$minor
    command -v python3 >/dev/null && fits python3 && report python3
fi
n=$first
while [ "$n" -ge "$last" ]; do
    command -v "python3.$n" >/dev/null && fits "python3.$n" && report "python3.$n"
    for root in "${PYENV_ROOT:-$HOME/.pyenv}" "$(pyenv root 2>/dev/null)"; do
        for candidate in "$root/versions/3.$n".*/bin/python3; do
            [ -x "$candidate" ] && fits "$candidate" && report "$candidate"
        done
    done
    n=$((n - 1))
done
if [ "$mode" = exactly ]; then
    echo "no python$wanted on the PATH or among pyenv's versions" >&2
else
    echo "No Python $wanted or newer was found (tried python3, python3.$newest ... python$wanted, pyenv)." >&2
    echo "Install one, or name it: make ... PYTHON=/path/to/python3" >&2
fi
exit 1
