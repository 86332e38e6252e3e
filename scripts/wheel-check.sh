#!/bin/sh
# Build the distribution and use it as a stranger would: an empty environment outside the tree, an empty directory.
#
# wheel-check.sh VENV: VENV holds `build`. Catches a missing dependency, a missing data file, a file of ours that
# only the source tree has, and a `modules` that stopped being a namespace.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

echo "== building the source distribution, and the wheel from it"
"$root/$1/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
"$root/$1/bin/python" - "$wheel" "$root" <<'PY'
import pathlib
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
strangers = [n for n in names if n.split("/")[0] not in ("modules", "ATLAS") and ".dist-info/" not in n]
root = pathlib.Path(sys.argv[2])
ours = [path for top in ("modules", "ATLAS") for path in (root / top).rglob("*") if path.is_file()]
wanted = [path.relative_to(root).as_posix() for path in ours if path.suffix != ".pyc"]
missing = [n for n in wanted if n not in names]
if strangers or missing or "modules/__init__.py" in names:
    sys.exit("wheel: does not belong there: %s; missing: %s; modules must stay a namespace" % (strangers, missing))
print("wheel: %d files, %s" % (len(names), sys.argv[1].rsplit("/", 1)[-1]))
PY

echo "== installing it into an empty environment"
python=$("$root/scripts/find-python.sh" at-least 3.9)
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$wheel"
mkdir "$work/empty" "$work/home"
cd "$work/empty"
echo "== atlas-storage demo"
env -i HOME="$work/home" PATH="/usr/bin:/bin" LANG=C.UTF-8 TERM=dumb "$work/venv/bin/atlas-storage" demo
"$work/venv/bin/python" -c 'import modules, modules.storage
assert modules.__file__ is None, "modules has an __init__.py: it is no namespace any more"'
echo "wheel check passed"
