"""Conditions on the metadata of messages: equality on keys, typed as in JSON (true is not 1, 1 equals 1.0).

No caller's text becomes SQL or a JSON path: on PostgreSQL the filter is one parameter for `@>`; on SQLite each step of a
key is compared as a value with `json_each`.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Tuple

from sqlalchemy import Text, bindparam, case, exists, func, literal_column, or_, type_coerce

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import encode_json, encode_text

__all__ = ["MetadataFilter", "Shape", "sqlite_conditions"]

_MAX_TERMS = 16
_MAX_DEPTH = 8
#: Kind of value -> the types that SQLite's json_each calls it by.
_KINDS: Dict[str, List[Any]] = {
    "null": [literal_column("'null'")],
    "true": [literal_column("'true'")],
    "false": [literal_column("'false'")],
    "number": [literal_column("'integer'"), literal_column("'real'")],
    "text": [literal_column("'text'")],
}

Shape = Tuple[Tuple[int, str], ...]


def _kind(value: Any, where: str) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if type(value) in (int, float):
        return "number"
    if type(value) is str:
        return "text"
    raise InvalidValueError(
        f"{where} must be a str, int, float, bool or None; use dotted keys for what lies deeper"
    )


class MetadataFilter:
    """A checked filter.

    Args:
        metadata: Key -> value; a dot in a key goes one level down: {"run.step": 3}.

    Attributes:
        shape: What decides the SQL on SQLite: for each term its depth and its kind of value.
        document: PostgreSQL's parameter, JSON text.
        params: SQLite's parameters.
        canonical: What cursors are bound to.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if not isinstance(metadata, Mapping) or not 1 <= len(metadata) <= _MAX_TERMS:
            raise InvalidValueError(f"metadata must be a mapping of 1 to {_MAX_TERMS} keys to values")
        shape: List[Tuple[int, str]] = []
        self.params: Dict[str, Any] = {}
        document: Dict[str, Any] = {}
        for index, (key, value) in enumerate(sorted(metadata.items(), key=lambda item: str(item[0]))):
            if not isinstance(key, str) or not key:
                raise InvalidValueError("the keys of a metadata filter must be non-empty str")
            encode_json({key: value}, "metadata")
            steps = key.split(".")
            if len(steps) > _MAX_DEPTH:
                raise InvalidValueError(
                    f"a metadata key goes {len(steps)} levels down; at most {_MAX_DEPTH} are allowed"
                )
            kind = _kind(value, "a value of a metadata filter")
            shape.append((len(steps), kind))
            for level, step in enumerate(steps):
                self.params[f"step_{index}_{level}"] = encode_text(step)
            if kind in ("number", "text"):
                self.params[f"value_{index}"] = encode_text(value) if kind == "text" else value
            _place(document, steps, value)
        self.shape: Shape = tuple(shape)
        self.document = str(encode_json(document, "metadata"))
        self.canonical = self.document


def _place(document: Dict[str, Any], steps: List[str], value: Any) -> None:
    for step in steps[:-1]:
        document = document.setdefault(step, {})
        if not isinstance(document, dict):
            raise InvalidValueError("a metadata filter names both a key and one below it")
    if steps[-1] in document:
        raise InvalidValueError("a metadata filter names both a key and one below it")
    document[steps[-1]] = value


def sqlite_conditions(shape: Shape, column: Any) -> List[Any]:
    """Return the conditions of a filter of this shape on the JSON text in `column`."""
    return [_term(index, depth, kind, column) for index, (depth, kind) in enumerate(shape)]


def _term(index: int, depth: int, kind: str, column: Any) -> Any:
    entry: Any = None
    tests = []
    for level in range(depth):
        # what is no object has no keys; json_each would refuse a plain text
        source = column if entry is None else case((entry.c.type == "object", entry.c.value), else_="{}")
        entry = func.json_each(type_coerce(source, Text)).table_valued(
            "key", "type", "value", "atom", name=f"e{level}"
        )
        tests.append(entry.c.key == bindparam(f"step_{index}_{level}", type_=Text()))
    tests.append(or_(*[entry.c.type == name for name in _KINDS[kind]]))
    if kind in ("number", "text"):
        tests.append(entry.c.atom == bindparam(f"value_{index}"))
    return exists().where(*tests)
