"""No caller's text becomes SQL (P33): statements are constants, and names reach them only through the quoter.

Text that is put together at import, in the body of a module, is a constant too: no caller exists yet. Inside a function
the only parts allowed are constants (a NAME_IN_CAPITALS of the module or imported), numbers, and what a quoter returns.
"""

from __future__ import annotations

import ast
import re
from typing import Dict, Iterator, List, Optional, Tuple

import pytest

from . import sources
from .sources import Finding, Source, dotted, parse, product, report, walk

trees_are_let_go = sources.trees_are_let_go

# Calls whose result may stand inside SQL text: the validating quoters, and numbers.
QUOTERS = {"quote_identifier", "quote_name", "quote_ident", "int", "float"}

# A name that house style keeps for what is bound once, at import (a rebinding inside a function is reported below).
CONSTANT = re.compile(r"(\w+\.)*_*[A-Z][A-Z0-9_]*")

# What takes SQL text as its first argument, on sqlite3, asyncpg, psycopg, SQLAlchemy and our own transaction protocol.
TAKES_SQL = {
    "execute", "executemany", "executescript", "exec_driver_sql", "execute_sql", "fetch", "fetchrow", "fetchval",
    "prepare", "cursor", "text", "DDL", "literal_column",
}  # fmt: skip

# Text that starts like a statement (upper case, so that prose is left alone).
SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+(INTO|OR)\s|UPDATE\s+\S|DELETE\s+FROM|REPLACE\s+INTO|WITH\s+\w+\s+AS|CREATE\s+\w|ALTER\s+\w"
    r"|DROP\s+\w|TRUNCATE\s|PRAGMA\s|SAVEPOINT\s|RELEASE\s|ROLLBACK\s+TO|ATTACH\s|VACUUM\s+INTO|SET\s+(LOCAL|SESSION)?\s*\w"
    r"|GRANT\s|COPY\s|LISTEN\s|NOTIFY\s|EXPLAIN\s|COMMENT\s+ON)"
)

# Places that do put text together, with the reason why no caller's text is in it.
_SEARCH = "modules/conversation_store/search_ddl.py"
_TASK_SEARCH = "modules/task_store/search_ddl.py"
_ROW = "the part is the row's alias, a literal of the same file: new, old or m"
ALLOWED: Dict[Tuple[str, str], str] = {
    (
        _SEARCH,
        "_postgresql",
    ): "the language was checked against the closed list LANGUAGES by both public functions",
    (_SEARCH, "_sqlite"): "the stemmer is one of two literals; the rest comes from the functions below",
    (_TASK_SEARCH, "_postgresql"): "the language was checked against LANGUAGES by both public functions",
    (_TASK_SEARCH, "_sqlite"): "the stemmer is one of two literals",
    (_SEARCH, "_number"): _ROW,
    (_SEARCH, "_add"): _ROW,
    (_SEARCH, "_remove"): _ROW,
}


def _text(node: Optional[ast.expr]) -> str:
    """Return the constant beginning of a string expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _text(node.func.value)
    return ""


def _safe_part(node: ast.expr) -> bool:
    if isinstance(node, ast.FormattedValue):
        return _text(node.format_spec) == "d" or _safe_part(node.value)  # ":d" refuses everything but an int
    if isinstance(node, ast.Call):
        return dotted(node.func).split(".")[-1].lstrip("_") in QUOTERS
    return isinstance(node, ast.Constant) or bool(CONSTANT.fullmatch(dotted(node)))


def _is_built(node: Optional[ast.expr]) -> bool:
    """Say whether a string expression is put together from parts that are neither constant nor quoted."""
    if isinstance(node, ast.JoinedStr):
        return not all(_safe_part(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        sides = [node.left, node.right]
        return any(
            _is_built(side) or not (_safe_part(side) or isinstance(side, (ast.BinOp, ast.JoinedStr)))
            for side in sides
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in {"format", "format_map", "join", "replace", "substitute"}
    return False


def _assigned(source: Source) -> Dict[Tuple[str, str], List[ast.expr]]:
    """Return what each name is given in each scope, so that ``sql = f"..."; execute(sql)`` is seen too."""
    values: Dict[Tuple[str, str], List[ast.expr]] = {}
    for node, scope in walk(source.tree):
        if isinstance(node, ast.Assign):
            targets: List[ast.expr] = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                built = (
                    ast.BinOp(target, ast.Add(), node.value)
                    if isinstance(node, ast.AugAssign)
                    else node.value
                )
                values.setdefault((scope, target.id), []).append(built)
    return values


def formatted_sql(source: Source) -> Iterator[Finding]:
    """Yield each built text that is SQL by its looks, or that is handed to something that runs SQL."""
    assigned = _assigned(source)
    inner = {id(part) for node, _ in walk(source.tree) for part in _operands(node)}
    for node, scope in walk(source.tree):
        if scope == "<module>":
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and CONSTANT.fullmatch(node.id):
            if (
                not scope.split(".")[-1].lstrip("_")[0].isupper()
            ):  # an attribute of a class body is no rebinding
                yield Finding(source.path, scope, node.lineno, f"{node.id} is spelt like a constant")
        if (
            isinstance(node, ast.expr)
            and id(node) not in inner
            and _is_built(node)
            and SQL.match(_text(node))
        ):
            yield Finding(source.path, scope, node.lineno, "SQL text put together from parts")
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in TAKES_SQL and node.args:
            first = node.args[0]
            options = [first]
            if isinstance(first, ast.Name):
                options = assigned.get((scope, first.id), [])
            if any(_is_built(option) for option in options):
                yield Finding(source.path, scope, node.lineno, f"{dotted(node.func)}() is given built text")


def _operands(node: ast.AST) -> List[ast.expr]:
    return [node.left, node.right] if isinstance(node, ast.BinOp) else []


def test_no_sql_is_put_together() -> None:
    found = [finding for source in product() for finding in formatted_sql(source)]

    assert not report([f for f in found if (f.path, f.scope) not in ALLOWED])
    assert not set(ALLOWED) - {(f.path, f.scope) for f in found}, "these exceptions are no longer needed"


@pytest.mark.parametrize(
    "text",
    [
        'connection.execute(f"SELECT * FROM {table}")',
        'connection.execute("SELECT * FROM " + table)',
        'connection.execute("SELECT * FROM %s" % table)',
        'connection.execute("SELECT * FROM {}".format(table))',
        'connection.fetch("SELECT a, b FROM t WHERE " + " AND ".join(clauses))',
        'text(f"{column} > 3")',
        'sql = f"{verb} {table}"; connection.execute(sql)',
        'sql = "DELETE FROM t"; sql += x; connection.execute(sql)',
        'return f"PRAGMA {name}"',
        'return "INSERT INTO t VALUES (%s)" % value',
        'connection.execute(f"PRAGMA synchronous = {level:s}")',
        "TABLE = given",
    ],
)
def test_built_sql_is_seen(text: str) -> None:
    assert list(formatted_sql(parse(f"def f(): {text}")))


@pytest.mark.parametrize(
    "text",
    [
        'connection.execute("SELECT * FROM t WHERE id = ?", (given,))',
        'connection.execute(f"SELECT * FROM {quote_identifier(table)}")',
        'connection.execute(f"PRAGMA busy_timeout = {int(timeout_ms)}")',
        'connection.execute(f"PRAGMA synchronous = {level:d}")',
        'connection.execute("SELECT 1 " + "FROM t")',
        'return text(f"SELECT version FROM {VERSION_TABLE}")',
        'raise KeyError(f"Select one of {names}")',
        'log = "a" + name; other.run(log)',
    ],
)
def test_constant_and_quoted_sql_is_left_alone(text: str) -> None:
    assert not report(list(formatted_sql(parse(f"def f(): {text}"))))
