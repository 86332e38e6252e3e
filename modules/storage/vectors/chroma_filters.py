"""Filters for Chroma: flat fields beside the metadata's JSON text, and the conditions that find candidates by them.

Chroma compares typed scalars under flat keys, has no `$not` and no `$exists`, reads the numbers of a `where` inexactly (one
in ten was seen to miss its own row), and looks through every row for an `$or`. So each scalar at a path is stored in our
own fields, and a filter becomes a small plan of single conditions that its indexes answer. Every match is among the
candidates that the plan gives; `filters.matches` then sorts out what else is, so the plan need only be wide enough.

| field | value |
|---|---|
| `ns` | the namespace |
| `e:<path>` | a scalar, as text that is equal exactly when the values are equal |
| `n:<path>` | a number, for ranges |
| `l:<path>=<text>` | "1": a list that has this element |
| `x:<path>` | "1": a list whose elements are not all given |
| `r:<path>` | "1": a list with a number in it |
| `x` | "1": too many fields; always a candidate |
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from modules.storage.vectors.filters import All, AnyOf, Comparison, Filter, Membership, Not, Scalar

__all__ = [
    "MAX_FIELDS",
    "OVERFLOW",
    "Both",
    "Either",
    "Leaf",
    "Plan",
    "Where",
    "candidate_plan",
    "flat_fields",
]

Where = Dict[str, Any]


@dataclass(frozen=True)
class Leaf:
    """One condition, a `where` of Chroma."""

    where: Where


@dataclass(frozen=True)
class Both:
    """What is in all parts; one part may do for it, the first are the most selective."""

    parts: Tuple[Plan, ...]


@dataclass(frozen=True)
class Either:
    """What is in one of the parts; of none: nothing."""

    parts: Tuple[Plan, ...]


Plan = Union[Leaf, Both, Either]

MAX_FIELDS = 200
_MAX_ELEMENTS = 32
_MAX_LENGTH = 120
_MAX_CONDITIONS = 60
_MAX_OPERANDS = 20
# text, because Chroma has no index of booleans
_MARK = "1"
#: Finds the rows that no plan can find.
OVERFLOW: Where = {"x": {"$eq": _MARK}}
# the text of a number is read by a parser that may be off in the last place
_SLACK = 4 * 2.0**-52


def flat_fields(metadata: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the fields that stand for `metadata` in clauses."""
    fields: Dict[str, Any] = {}
    stack: List[Any] = [("", metadata)]
    while stack:
        prefix, value = stack.pop()
        for key, child in value.items():
            # a key with a dot, or a blank one, is on no path of the filter language
            if not key or "." in key:
                continue
            path = prefix + "." + key if prefix else key
            if isinstance(child, dict):
                stack.append((path, child))
            else:
                _add(fields, path, child)
            if len(fields) > MAX_FIELDS:
                return {"x": _MARK}
    return fields


def _add(fields: Dict[str, Any], path: str, value: Any) -> None:
    name = _short(path)
    if not isinstance(value, list):
        fields["e:" + name] = _text(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            fields["n:" + name] = float(value)
        return
    scalars = [item for item in value if not isinstance(item, (list, dict))]
    if any(isinstance(item, (int, float)) and not isinstance(item, bool) for item in scalars):
        fields["r:" + name] = _MARK
    if len(scalars) > _MAX_ELEMENTS:
        fields["x:" + name] = _MARK
        return
    for item in scalars:
        fields[_element(name, _text(item))] = _MARK


def _element(name: str, text: str) -> str:
    return f"l:{name}={text}"


def _text(value: Scalar) -> str:
    """Return a text that is the same for values that are equal in the filter language, and for no others."""
    if value is None:
        return "z"
    if isinstance(value, bool):
        return "b1" if value else "b0"
    if isinstance(value, str):
        return "t" + _short(value)
    if isinstance(value, float) and not value.is_integer():
        return "n" + repr(value)
    return "n" + str(int(value))


def _short(text: str) -> str:
    if len(text) <= _MAX_LENGTH and text.isprintable() and not text.startswith("~"):
        return text
    return "~" + hashlib.sha256(text.encode()).hexdigest()


def candidate_plan(tree: Optional[Filter]) -> Optional[Plan]:
    """Return how to find rows that may match; None: every row may. Rows of `OVERFLOW` always may."""
    if tree is None or _size(tree) > _MAX_CONDITIONS:
        return None
    return _compile(tree)


def _size(tree: Filter) -> int:
    if isinstance(tree, (All, AnyOf)):
        return sum(_size(part) for part in tree.parts)
    return _size(tree.part) if isinstance(tree, Not) else 1


def _compile(tree: Filter) -> Optional[Plan]:
    if isinstance(tree, All):
        known = [plan for plan in map(_compile, tree.parts) if plan is not None]
        known.sort(key=_breadth)
        return Both(tuple(known)) if known else None
    if isinstance(tree, AnyOf):
        parts = [_compile(part) for part in tree.parts]
        chosen = [plan for plan in parts if plan is not None]
        return Either(tuple(chosen)) if len(chosen) == len(parts) else None
    if isinstance(tree, Membership) and not tree.negated:
        return _equal(tree.path, tree.values)
    if isinstance(tree, Comparison):
        if tree.operator == "$eq":
            return _equal(tree.path, [tree.value])
        return None if tree.operator == "$ne" else _range(tree)
    # $not, $nin, $exists: of no use to find a few
    return None


def _breadth(plan: Plan) -> int:
    """Ranges find more than equality, as a rule."""
    if isinstance(plan, Leaf):
        return int(next(iter(plan.where)).startswith("n:"))
    return max((_breadth(part) for part in plan.parts), default=0)


def _equal(path: Sequence[str], values: Sequence[Scalar]) -> Optional[Plan]:
    name = _short(".".join(path))
    texts = sorted({_text(value) for value in values})
    if len(texts) > _MAX_OPERANDS:
        return None
    if not texts:
        return Either(())
    here = Leaf({"e:" + name: {"$in": texts} if len(texts) > 1 else {"$eq": texts[0]}})
    inside = [Leaf({_element(name, text): {"$eq": _MARK}}) for text in texts]
    return Either((here, *inside, Leaf({"x:" + name: {"$eq": _MARK}})))


def _range(tree: Comparison) -> Optional[Plan]:
    if not isinstance(tree.value, (int, float)):
        # Chroma orders numbers only
        return None
    name = _short(".".join(tree.path))
    value = float(tree.value)
    slack = abs(value) * _SLACK + 5e-323
    upwards = tree.operator in ("$gt", "$gte")
    bound = value - slack if upwards else value + slack
    if not math.isfinite(bound):
        return None
    here = Leaf({"n:" + name: {"$gte" if upwards else "$lte": bound}})
    return Either((here, Leaf({"r:" + name: {"$eq": _MARK}}), Leaf({"x:" + name: {"$eq": _MARK}})))
