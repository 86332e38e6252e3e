"""The one filter language of all vector stores: parsed once into a small tree, compiled by each provider.

    {"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$in": ["a", "b"]}}]}

| operator | holds when |
|---|---|
| `{"k": v}`, `$eq` | the value at `k` equals `v`; of a list, when one element does |
| `$ne` | `k` is there and `$eq` does not hold |
| `$gt` `$gte` `$lt` `$lte` | the value (of a list: one element) is a number or text as the operand is, and compares so |
| `$in` | `$eq` holds for one of the operands |
| `$nin` | `k` is there and `$in` does not hold |
| `$exists` | `k` is there (true), with any value, null included; or is not (false) |
| `$and` `$or` | all, one of a list of filters; several keys of one mapping are `$and` |
| `$not` | the filter does not hold (so it holds for documents without the key) |

Comparison is typed: 9 < 10, numbers and text never compare, true is a boolean and not 1, 1 equals 1.0, text compares by
code point. A dot goes down into objects: `author.name`. Lists are looked into one level deep; an object equals nothing.
A missing key does not match `$ne`; ask with `$or` and `$exists` where it should. `matches` is the reference that every
provider agrees with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from modules.storage.vectors.errors import VectorFilterError
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_json

__all__ = [
    "All",
    "AnyOf",
    "Comparison",
    "Exists",
    "Filter",
    "Membership",
    "Not",
    "Path",
    "Scalar",
    "matches",
    "parse_filter",
]

Path = Tuple[str, ...]
Scalar = Union[str, bool, int, float, None]

_MAX_DEPTH = 20
_MAX_CONDITIONS = 500
_COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
_OPERATORS = (*_COMPARISONS, "$in", "$nin", "$exists", "$not")


@dataclass(frozen=True)
class Comparison:
    """`path operator value`; operator is one of $eq $ne $gt $gte $lt $lte."""

    path: Path
    operator: str
    value: Scalar


@dataclass(frozen=True)
class Membership:
    """`path $in values`, or `$nin` when negated."""

    path: Path
    values: Tuple[Scalar, ...]
    negated: bool


@dataclass(frozen=True)
class Exists:
    """Whether `path` is there."""

    path: Path
    expected: bool


@dataclass(frozen=True)
class All:
    """Every one of `parts` holds; of none: true."""

    parts: Tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf:
    """One of `parts` holds; of none: false."""

    parts: Tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """`part` does not hold."""

    part: Filter


Filter = Union[Comparison, Membership, Exists, All, AnyOf, Not]


def parse_filter(given: Optional[Mapping[str, Any]]) -> Optional[Filter]:
    """Return the tree of a filter; None for None and for an empty mapping.

    Raises:
        VectorFilterError: says which part is wrong.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise VectorFilterError(f"a filter is a mapping, not {type(given).__name__}")
    if not given:
        return None
    try:
        check_json(dict(given), "the filter")
    except InvalidValueError as exc:
        raise VectorFilterError(str(exc)) from None
    parser = _Parser()
    return parser.mapping(given, "the filter", 1)


class _Parser:
    def __init__(self) -> None:
        self._conditions = 0

    def mapping(self, given: Any, where: str, depth: int) -> Filter:
        if not isinstance(given, Mapping) or not given:
            raise VectorFilterError(f"{where} must be a mapping with at least one key")
        if depth > _MAX_DEPTH:
            raise VectorFilterError(f"the filter is nested deeper than {_MAX_DEPTH} levels")
        parts = [self._entry(key, value, depth) for key, value in given.items()]
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _entry(self, key: str, value: Any, depth: int) -> Filter:
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise VectorFilterError(f"{key} takes a list of at least one filter")
            parts = tuple(self.mapping(item, f"each item of {key}", depth + 1) for item in value)
            return All(parts) if key == "$and" else AnyOf(parts)
        if key == "$not":
            return Not(self.mapping(value, "$not", depth + 1))
        if key.startswith("$"):
            raise VectorFilterError(f"{key[:40]!r} is not an operator here; known are $and, $or and $not")
        return self._field(_path(key), value, depth)

    def _field(self, path: Path, value: Any, depth: int) -> Filter:
        if not isinstance(value, Mapping):
            return self._condition(path, "$eq", value, depth)
        if not value:
            raise VectorFilterError(f"the condition on {_shown(path)} is empty")
        parts = [self._condition(path, operator, operand, depth) for operator, operand in value.items()]
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _condition(self, path: Path, operator: str, operand: Any, depth: int) -> Filter:
        self._conditions += 1
        if self._conditions > _MAX_CONDITIONS:
            raise VectorFilterError(f"the filter has more than {_MAX_CONDITIONS} conditions")
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise VectorFilterError(f"$exists on {_shown(path)} takes true or false")
            return Exists(path, operand)
        if operator in ("$in", "$nin"):
            if not isinstance(operand, list):
                raise VectorFilterError(f"{operator} on {_shown(path)} takes a list")
            return Membership(path, tuple(_scalar(item, path) for item in operand), operator == "$nin")
        if operator == "$not":
            return Not(self._field(path, operand, depth + 1))
        if operator not in _COMPARISONS:
            raise VectorFilterError(
                f"{operator[:40]!r} on {_shown(path)} is not an operator; known are {', '.join(_OPERATORS)}"
            )
        value = _scalar(operand, path)
        if operator not in ("$eq", "$ne") and (value is None or isinstance(value, bool)):
            raise VectorFilterError(
                f"{operator} on {_shown(path)} compares numbers or text, not booleans or null"
            )
        return Comparison(path, operator, value)


def _path(key: str) -> Path:
    parts = tuple(key.split("."))
    if not all(parts):
        raise VectorFilterError("a key of the filter is blank or has an empty part between dots")
    return parts


def _shown(path: Path) -> str:
    return repr(".".join(path)[:60])


def _scalar(value: Any, path: Path) -> Scalar:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise VectorFilterError(
        f"an operand on {_shown(path)} is a {type(value).__name__}; it must be text, number, boolean or null"
    )


_MISSING = object()
_ORDER: Dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def matches(tree: Optional[Filter], metadata: Mapping[str, Any]) -> bool:
    """Return whether a document with `metadata` passes the filter. The reference for every provider."""
    if tree is None:
        return True
    if isinstance(tree, All):
        return all(matches(part, metadata) for part in tree.parts)
    if isinstance(tree, AnyOf):
        return any(matches(part, metadata) for part in tree.parts)
    if isinstance(tree, Not):
        return not matches(tree.part, metadata)
    found = _look_up(tree.path, metadata)
    if isinstance(tree, Exists):
        return (found is not _MISSING) is tree.expected
    if found is _MISSING:
        return False
    elements: List[Any] = found if isinstance(found, list) else [found]
    if isinstance(tree, Membership):
        return (
            any(_equal(element, value) for element in elements for value in tree.values) is not tree.negated
        )
    if tree.operator in ("$eq", "$ne"):
        return any(_equal(element, tree.value) for element in elements) is (tree.operator == "$eq")
    compare = _ORDER[tree.operator]
    return any(_kind(element) == _kind(tree.value) and compare(element, tree.value) for element in elements)


def _look_up(path: Path, metadata: Any) -> Any:
    for part in path:
        if not isinstance(metadata, Mapping) or part not in metadata:
            return _MISSING
        metadata = metadata[part]
    return metadata


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number" if math.isfinite(value) else "other"
    if isinstance(value, str):
        return "text"
    return "null" if value is None else "other"


def _equal(element: Any, value: Scalar) -> bool:
    kind = _kind(element)
    return kind != "other" and kind == _kind(value) and bool(element == value)
