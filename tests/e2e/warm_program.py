"""`atlas-storage` many times from one process that has imported it: python -m tests.e2e.warm_program

Importing is nine tenths of what a short command costs, so each run here is a fork of a process that has done it. A line of
JSON on standard input is one run: `arguments`, `environment`, `directory` and the paths of `stdin`, `stdout` and `stderr`;
its exit code is printed. The fork has nothing but what it is given: the environment is replaced, the three files are its
own, and it ends as an interpreter does. `test_cli.py` runs the installed program itself, imports and all.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from typing import Any, Dict

# What short commands load when they need it.
_LOADED = (
    "alembic.command", "asyncpg", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite",
    "modules.conversation_store.repository", "modules.job_store.repository", "modules.job_store.queue",
    "modules.storage.backends.postgresql_executor", "modules.storage.backends.sqlite_executor", "modules.storage.cli",
    "modules.storage.commands.app", "modules.storage.manager", "modules.storage.migrations.runner",
    "modules.storage.vectors.registry", "modules.task_store.repository", "modules.Tools.Base_Tools.kv_store",
)  # fmt: skip


def main() -> int:
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    print("ready", file=answers, flush=True)
    while True:
        line = requests.readline()
        if not line:
            return 0
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            return _run(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, file=answers, flush=True)


def _run(given: Dict[str, Any]) -> int:
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["directory"])
    sys.argv = given["arguments"]
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        file = os.open(given[name], flags)
        os.dup2(file, number)
        os.close(file)
    from modules.storage.cli import main as program

    return program()


if __name__ == "__main__":
    sys.exit(main())
