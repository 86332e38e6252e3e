#!/bin/sh
# Run the SQLite core suite on every supported interpreter that this machine has (one kept environment each).
#
# The oldest runs all of it, as .venv does in `make test`; the others run the unit tests and one contract suite of each store,
# so that the whole stays within CI's time. Databases in memory are left to `make test`: the same code with one connection.
#
# Versions that are not found are printed as skipped; MATRIX="3.9 3.13" picks, PYTEST_ARGS is passed on.
set -u
cd "$(dirname "$0")/.." || exit 2
failed="" passed="" skipped=""

for version in ${MATRIX:-3.9 3.10 3.12 3.13}; do
    if ! python=$(scripts/find-python.sh exactly "$version" 2>&1); then
        echo "== Python $version: skipped: $python" # in this case it holds the reason
        skipped="$skipped $version"
        continue
    fi
    venv=.venv-matrix/$version
    stamp=$venv/.installed
    if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        echo "== Python $version: installing with $python"
        # The `postgres` extra stays out: the core must work, and its tests be collected, without it.
        if ! { PYTHON=$python scripts/make-venv.sh "$venv" "$version" \
            && scripts/install.sh "$venv" --upgrade -e '.[test-core]' \
            && touch "$stamp"; }; then
            failed="$failed $version(install)"
            continue
        fi
    fi
    echo "== Python $version: $("$venv/bin/python" -c 'import platform, sqlite3, sqlalchemy, pydantic
print(platform.python_version(), "SQLite", sqlite3.sqlite_version, "SQLAlchemy", sqlalchemy.__version__, "pydantic", pydantic.VERSION)')"
    suite="tests/unit tests/contract tests/properties"
    case $version in
        3.10 | 3.12 | 3.13)
            suite=tests/unit
            for name in kv_store conversations conversations_messages tasks jobs_queue unit_of_work vectors_in_memory manager; do
                suite="$suite tests/contract/test_$name.py"
            done
            ;;
    esac
    # shellcheck disable=SC2086 # words of their own
    if ATLAS_REQUIRE_BACKENDS=sqlite "$venv/bin/python" -m pytest -q -n "${JOBS:-2}" \
        -m "not postgresql and not slow" -k "not sqlite-memory" $suite ${PYTEST_ARGS:-}; then
        passed="$passed $version"
    else
        failed="$failed $version"
    fi
done
echo "Matrix: passed:${passed:- none}; failed:${failed:- none}; skipped:${skipped:- none}"
[ -z "$failed" ]
