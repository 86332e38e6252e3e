"""Pinecone: what of a document's metadata it can filter by, and filters in its language.

Its metadata values are text, numbers, booleans and lists of text; there is no null, no nesting, no $not, and what $ne and
$nin mean for a missing or a list field is not documented. So it is only asked positive questions: each record carries
tokens (one for every path that is there, one for every value that a path equals) and, of numbers, the least and the
greatest at each path. A compiled filter lets through everything that matches, and perhaps more (`exact` says which);
what it lets through is always checked with `filters.matches`. The fields' names hold no text of the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Union

from modules.storage.vectors.filters import All, AnyOf, Comparison, Exists, Filter, Membership, Not
from modules.storage.vectors.pinecone_names import digest

__all__ = ["TAGS", "UNINDEXED", "Compiled", "compile_filter", "filter_fields"]

#: The field of the tokens.
TAGS = "atlas_tags"
#: Set, instead of everything else here, when the tokens did not fit.
UNINDEXED = "atlas_unindexed"

# https://docs.pinecone.io/reference/api/database-limits/operation-limits: 10,000 values in $in
_MAX_VALUES = 10_000
_MAX_FLOAT = 1.7976931348623157e308

_Native = Dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """A filter for Pinecone.

    Attributes:
        native: None: everything has to be looked at.
        exact: It lets nothing else through (but for chance collisions of tokens, which the check removes).
    """

    native: Optional[_Native]
    exact: bool


def filter_fields(metadata: Mapping[str, Any]) -> Dict[str, Union[float, List[str]]]:
    """Return the fields by which `metadata` can be found."""
    tags: Set[str] = set()
    numbers: Dict[str, List[float]] = {}
    for path, value in _paths(metadata):
        tags.add(_presence(path))
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, (dict, list)):
                continue
            tags.add(_equality(path, element))
            if isinstance(element, (int, float)) and not isinstance(element, bool):
                numbers.setdefault(path, []).append(float(element))
    fields: Dict[str, Union[float, List[str]]] = {TAGS: sorted(tags)} if tags else {}
    for path, found in numbers.items():
        least, greatest = _range_fields(path)
        fields[least], fields[greatest] = min(found), max(found)
    return fields


def _paths(metadata: Mapping[str, Any], above: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in metadata.items():
        # a filter's path is split at dots, so it never names such a key
        if not key or "." in key:
            continue
        path = above + key
        yield path, value
        if isinstance(value, Mapping):
            yield from _paths(value, path + ".")


def _presence(path: str) -> str:
    return digest("there", path, size=8)


def _equality(path: str, value: Any) -> str:
    if value is None:
        return digest("null", path, size=8)
    if isinstance(value, bool):
        return digest("boolean", path, str(value), size=8)
    if isinstance(value, str):
        return digest("text", path, value, size=8)
    # 1 equals 1.0, 2**53 + 1 does not equal 2.0**53
    exact = int(value) if isinstance(value, float) and value.is_integer() else value
    return digest("number", path, repr(exact), size=8)


def _range_fields(path: str) -> Tuple[str, str]:
    name = digest(path, size=8)
    return f"atlas_min_{name}", f"atlas_max_{name}"


def compile_filter(tree: Optional[Filter]) -> Compiled:
    """Return what Pinecone is asked for `tree`."""
    if tree is None:
        return Compiled(None, True)
    found = _compile(tree)
    if found.native is None:
        return found
    return Compiled({"$or": [found.native, {UNINDEXED: {"$eq": True}}]}, found.exact)


def _compile(tree: Filter) -> Compiled:
    if isinstance(tree, All):
        parts = [_compile(part) for part in tree.parts]
        asked = [part.native for part in parts if part.native is not None]
        native = None if not asked else asked[0] if len(asked) == 1 else {"$and": asked}
        return Compiled(native, all(part.exact for part in parts))
    if isinstance(tree, AnyOf):
        return _any_of([_compile(part) for part in tree.parts])
    if isinstance(tree, Not):
        return Compiled(None, False)
    path = ".".join(tree.path)
    there = _tagged([_presence(path)])
    if isinstance(tree, Exists):
        return Compiled(there, True) if tree.expected else Compiled(None, False)
    if isinstance(tree, Membership):
        if tree.negated or len(tree.values) > _MAX_VALUES:
            return Compiled(there, False)
        return Compiled(_tagged([_equality(path, value) for value in tree.values]), True)
    return _comparison(tree, path, there)


def _any_of(parts: List[Compiled]) -> Compiled:
    asked = [part.native for part in parts]
    if not asked or any(native is None for native in asked):
        return Compiled(None, False)
    return Compiled(asked[0] if len(asked) == 1 else {"$or": asked}, all(part.exact for part in parts))


def _comparison(tree: Comparison, path: str, there: _Native) -> Compiled:
    if tree.operator == "$eq":
        return Compiled(_tagged([_equality(path, tree.value)]), True)
    if tree.operator == "$ne" or not isinstance(tree.value, (int, float)):
        return Compiled(there, False)
    least, greatest = _range_fields(path)
    # one number of a list is enough; as floats neighbours may become equal, so the border is let in and checked here
    limit = float(tree.value)
    if tree.operator in ("$gt", "$gte"):
        return Compiled({greatest: {"$gte": max(limit, -_MAX_FLOAT)}}, tree.operator == "$gte")
    return Compiled({least: {"$lte": min(limit, _MAX_FLOAT)}}, tree.operator == "$lte")


def _tagged(tokens: List[str]) -> _Native:
    # Pinecone refuses an empty list; no token is spelt so, so nothing passes
    return {TAGS: {"$in": sorted(set(tokens)) or ["none"]}}
