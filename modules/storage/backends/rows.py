"""Free SQL of administrators and users: compiled from named parameters, run in a transaction, rows as mappings."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from modules.store_common.errors import InvalidValueError

__all__ = ["compile_free_sql"]


def compile_free_sql(sql: str, params: Optional[Mapping[str, Any]], dialect: str) -> tuple[str, List[Any]]:
    """Return `sql` with its `:name` parameters made positional, and their values in order.

    Raises:
        InvalidValueError: a parameter has no value.
    """
    from sqlalchemy import text

    from modules.storage.statements import Statement

    compiled = Statement(text(sql)).compiled(dialect)
    given: Dict[str, Any] = dict(params or {})
    try:
        return compiled.sql, list(compiled.bind(given))
    except KeyError as exc:
        raise InvalidValueError(
            f"the SQL text has a parameter :{exc.args[0]} and no value was given for it"
        ) from None
