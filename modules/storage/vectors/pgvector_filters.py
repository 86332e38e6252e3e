"""The filter language in PostgreSQL's SQL, exactly as `filters.matches` says; every key and value is a bound parameter.

Filters look at the column `search`, a jsonb twin of the metadata. It differs from the stored text where jsonb would make
comparisons wrong: NUL is written order-preserving (jsonb cannot hold it), and floats of 1e16 and more are written out,
since 4.611686018427388e18 as a decimal is not the number that the float is.

Equality is containment (`@>`), which the GIN index answers: `{"k": v}` for the value itself, `{"k": [v]}` for a list that
has it. Order is a constant jsonpath over the value at the path, with the operand as its variable. A key of
`index_metadata` gets one more condition that follows from the first and that its B-tree can answer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from sqlalchemy import (
    ARRAY,
    Boolean,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    false,
    func,
    literal_column,
    not_,
    or_,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import ColumnElement

from modules.storage.vectors.filters import All, AnyOf, Comparison, Exists, Filter, Membership, Not
from modules.store_common.values import decode_json

__all__ = ["BoundFilter", "bind_filter", "filter_clause", "search_texts"]

_ORDERINGS: Dict[str, ColumnElement[Any]] = {
    "$gt": literal_column("'strict $ ? (@ > $x || exists(@[*] ? (@ > $x)))'::jsonpath"),
    "$gte": literal_column("'strict $ ? (@ >= $x || exists(@[*] ? (@ >= $x)))'::jsonpath"),
    "$lt": literal_column("'strict $ ? (@ < $x || exists(@[*] ? (@ < $x)))'::jsonpath"),
    "$lte": literal_column("'strict $ ? (@ <= $x || exists(@[*] ? (@ <= $x)))'::jsonpath"),
}
_COMPARE = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# jsonb orders object > array > boolean > number > text > null, so non-empty lists lie between these two.
# Source: PostgreSQL documentation, 8.14.4 "jsonb Indexing"
_BELOW_LISTS: ColumnElement[Any] = literal_column("'true'::jsonb")
_ABOVE_LISTS: ColumnElement[Any] = literal_column("'{}'::jsonb")
_ABOVE_NUMBERS: ColumnElement[Any] = literal_column("'false'::jsonb")
# More alternatives than this go into one array, which no index answers.
_MAX_ALTERNATIVES = 16
# In metadata JSON: NUL's escape, U+0001, and floats in exponent form; only then the twin differs from the text.
_EXPONENT = re.compile("[0-9][eE]\\+?[0-9]")


def _differs(text: str) -> bool:
    return "\ue000" in text or "\\u0001" in text or _EXPONENT.search(text) is not None


def search_texts(metadata_jsons: Sequence[str]) -> List[Optional[str]]:
    """Return the JSON texts of the column `search`: None for one that is the same as the metadata's.

    Args:
        metadata_jsons: Of documents, as they are stored.

    Returns:
        As many; nothing when all are the same, as they nearly always are: then all are looked through at once.
    """
    if not _differs("\n".join(metadata_jsons)):
        return []
    return [_json(decode_json(text)) if _differs(text) else None for text in metadata_jsons]


def _comparable(value: Any) -> Any:
    kind = type(value)
    if kind is str:
        return _comparable_text(value)
    if kind is float and abs(value) >= 2.0**53:
        return int(value)
    if kind is list:
        return [_comparable(item) for item in value]
    if kind is dict:
        return {_comparable_text(key): _comparable(item) for key, item in value.items()}
    return value


def _comparable_text(value: str) -> str:
    if "\x00" in value or "\x01" in value:
        return value.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")
    return value


def _json(value: Any) -> str:
    # not orjson: whole numbers may pass 64 bits here
    return json.dumps(_comparable(value), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class BoundFilter:
    """A filter made ready for one table.

    Attributes:
        tree: The filter.
        shape: Filters with the same shape have the same SQL.
        params: The values of its parameters.
    """

    tree: Filter
    shape: str
    params: Dict[str, Any]


def bind_filter(tree: Filter, indexed: FrozenSet[str]) -> BoundFilter:
    """Return the shape and the parameters of a filter; `indexed` are the keys with a B-tree."""
    writer = _Parameters(indexed)
    shape = writer.visit(tree)
    return BoundFilter(tree, shape, writer.params)


class _Parameters:
    """Walks a tree and collects the parameters, in the order in which `_Clauses` asks for them."""

    def __init__(self, indexed: FrozenSet[str]) -> None:
        self.params: Dict[str, Any] = {}
        self._indexed = indexed

    def _add(self, value: Any) -> None:
        self.params[f"f{len(self.params)}"] = value

    def visit(self, tree: Filter) -> str:
        if isinstance(tree, (All, AnyOf)):
            inner = ",".join(self.visit(part) for part in tree.parts)
            return f"{type(tree).__name__}({inner})"
        if isinstance(tree, Not):
            return f"Not({self.visit(tree.part)})"
        if isinstance(tree, Exists):
            self._path(tree.path)
            return f"Exists{len(tree.path)}{tree.expected}"
        if isinstance(tree, Membership):
            return self._membership(tree)
        if tree.operator in ("$eq", "$ne"):
            if tree.operator == "$ne":
                self._path(tree.path)
            return f"{tree.operator}{len(tree.path)}{self._equal(tree.path, tree.value)}"
        self._path(tree.path)
        self._add(_json({"x": tree.value}))
        return f"{tree.operator}{len(tree.path)}{self._ordered(tree)}"

    def _membership(self, tree: Membership) -> str:
        if tree.negated:
            self._path(tree.path)
        shape = f"{'$nin' if tree.negated else '$in'}{len(tree.path)}"
        if len(tree.values) > _MAX_ALTERNATIVES:
            texts: List[str] = []
            for value in tree.values:
                texts += _containments(tree.path, value)
            self._add(texts)
            return f"{shape}many"
        return shape + "|".join(self._equal(tree.path, value) for value in tree.values)

    def _path(self, path: Tuple[str, ...]) -> None:
        for key in path:
            self._add(_comparable_text(key))

    def _equal(self, path: Tuple[str, ...], value: Any) -> str:
        for text in _containments(path, value):
            self._add(text)
        if not _has_tree(path, self._indexed):
            return "="
        self._path(path)
        self._add(_json(value))
        return "=i"

    def _ordered(self, tree: Comparison) -> str:
        if not _has_tree(tree.path, self._indexed) or isinstance(tree.value, str):
            return ""
        self._add(_json(tree.value))
        return "i"


def _containments(path: Tuple[str, ...], value: Any) -> List[str]:
    single: Any = value
    listed: Any = [value]
    for key in reversed(path):
        single, listed = {key: single}, {key: listed}
    return [_json(single), _json(listed)]


def _has_tree(path: Tuple[str, ...], indexed: FrozenSet[str]) -> bool:
    return len(path) == 1 and path[0] in indexed


def filter_clause(tree: Filter, search: ColumnElement[Any], indexed: FrozenSet[str]) -> ColumnElement[bool]:
    """Return the condition, with the parameters that `bind_filter` gives. It is never NULL."""
    return _Clauses(search, indexed).visit(tree)


class _Clauses:
    def __init__(self, search: ColumnElement[Any], indexed: FrozenSet[str]) -> None:
        self._search = search
        self._indexed = indexed
        self._used = 0

    def _next(self, column_type: Any = None) -> ColumnElement[Any]:
        name = f"f{self._used}"
        self._used += 1
        if column_type is not None:
            return cast(bindparam(name, type_=ARRAY(Text)), column_type)
        return bindparam(name, type_=Text())

    def _json(self) -> ColumnElement[Any]:
        return cast(self._next(), JSONB)

    def visit(self, tree: Filter) -> ColumnElement[bool]:
        if isinstance(tree, All):
            return and_(true(), *[self.visit(part) for part in tree.parts])
        if isinstance(tree, AnyOf):
            return or_(false(), *[self.visit(part) for part in tree.parts])
        if isinstance(tree, Not):
            return not_(self.visit(tree.part))
        if isinstance(tree, Exists):
            found = self._value(tree.path)
            return found.isnot(None) if tree.expected else found.is_(None)
        if isinstance(tree, Membership):
            return self._membership(tree)
        if tree.operator == "$eq":
            return self._equal(tree.path)
        if tree.operator == "$ne":
            there = self._value(tree.path).isnot(None)
            return and_(there, not_(self._equal(tree.path)))
        return self._ordered(tree)

    def _value(self, path: Tuple[str, ...]) -> ColumnElement[Any]:
        found = self._search
        for _ in path:
            found = found.op("->", return_type=JSONB())(self._next())
        return found

    def _membership(self, tree: Membership) -> ColumnElement[bool]:
        there = self._value(tree.path).isnot(None) if tree.negated else None
        inside: ColumnElement[bool]
        if len(tree.values) > _MAX_ALTERNATIVES:
            inside = self._contains(any_(self._next(ARRAY(JSONB))))
        else:
            inside = or_(false(), *[self._equal(tree.path) for _ in tree.values])
        return inside if there is None else and_(there, not_(inside))

    def _contains(self, right: ColumnElement[Any]) -> ColumnElement[bool]:
        contains: Callable[[Any], ColumnElement[bool]] = self._search.op("@>", return_type=Boolean())
        return contains(right)

    def _equal(self, path: Tuple[str, ...]) -> ColumnElement[bool]:
        found = or_(self._contains(self._json()), self._contains(self._json()))
        if not _has_tree(path, self._indexed):
            return found
        value = self._value(path)
        same = value == self._json()
        return and_(found, or_(same, self._listed(value)))

    def _listed(self, value: ColumnElement[Any]) -> ColumnElement[bool]:
        return and_(value > _BELOW_LISTS, value < _ABOVE_LISTS)

    def _ordered(self, tree: Comparison) -> ColumnElement[bool]:
        value = self._value(tree.path)
        exact = func.coalesce(
            func.jsonb_path_exists(value, _ORDERINGS[tree.operator], self._json(), true()), false()
        )
        if not _has_tree(tree.path, self._indexed) or isinstance(tree.value, str):
            return exact
        near: ColumnElement[bool] = value.op(_COMPARE[tree.operator], return_type=Boolean())(self._json())
        if tree.operator in ("$gt", "$gte"):
            near = and_(near, value < _ABOVE_NUMBERS)
        return and_(exact, or_(near, self._listed(value)))
