"""A filter as SQL over JSON text, for SQLite; agrees with `filters.matches` to the last id.

Keys and values are parameters: each step of a path is compared with the keys that `json_each` gives, so no caller's text
is SQL or a JSON path. SQLite reads decimal fractions with an error of up to some units in the last place; so a filter is
compiled twice, as "possible" and as "certain" (they differ where a fraction lies within that error of an operand), and
the few rows that are possible and not certain are decided by `matches`.

Two things go to `matches` altogether: filters so wide that SQLite's limits are near, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from sqlalchemy import (
    LargeBinary,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal_column,
    not_,
    or_,
    true,
)

from modules.storage.vectors.filters import (
    All,
    AnyOf,
    Exists,
    Filter,
    Membership,
    Not,
    Path,
    Scalar,
)
from modules.store_common.values import encode_text

__all__ = ["FilterParts", "conditions", "parts_of"]

_MAX_LEAVES = 60
_MAX_STEPS = 20
# SQLite's own reading of a decimal fraction is good to about 1e-16 relative; generously:
_RELATIVE_ERROR = 1e-14
_ABSOLUTE_ERROR = 1e-300


@dataclass(frozen=True)
class FilterParts:
    """A filter taken apart.

    Attributes:
        shape: What decides the SQL; filters of one shape share a statement.
        params: The keys and values.
        has_numbers: Whether "possible" and "certain" can differ.
    """

    shape: Tuple[Any, ...]
    params: Dict[str, Any]
    has_numbers: bool


def parts_of(tree: Filter) -> Optional[FilterParts]:
    """Return the parts of a filter, None for one that is too wide for SQL."""
    collector = _Collector()
    try:
        shape = collector.shape(tree)
    except _TooWideError:
        return None
    return FilterParts(shape, collector.params, collector.has_numbers)


class _TooWideError(Exception):
    pass


class _Collector:
    """Walks a filter; numbers its parameters in the order of the walk."""

    def __init__(self) -> None:
        self.params: Dict[str, Any] = {}
        self.has_numbers = False
        self._leaves = 0

    def shape(self, tree: Filter) -> Tuple[Any, ...]:
        if isinstance(tree, (All, AnyOf)):
            return (type(tree).__name__, *(self.shape(part) for part in tree.parts))
        if isinstance(tree, Not):
            return ("Not", self.shape(tree.part))
        steps = self._path(tree.path)
        if isinstance(tree, Exists):
            self._count()
            return ("Exists", steps, tree.expected)
        if isinstance(tree, Membership):
            tests = tuple(self._test("$eq", value) for value in tree.values)
            return ("Leaf", steps, tests, tree.negated)
        operator = "$eq" if tree.operator == "$ne" else tree.operator
        return ("Leaf", steps, (self._test(operator, tree.value),), tree.operator == "$ne")

    def _count(self) -> None:
        self._leaves += 1
        if self._leaves > _MAX_LEAVES:
            raise _TooWideError

    def _path(self, path: Path) -> Tuple[str, ...]:
        if len(path) > _MAX_STEPS:
            raise _TooWideError
        return tuple(self._add(encode_text(step)) for step in path)

    def _add(self, value: Any) -> str:
        name = f"f{len(self.params)}"
        self.params[name] = value
        return name

    def _test(self, operator: str, value: Scalar) -> Tuple[str, ...]:
        self._count()
        if value is None or isinstance(value, bool):
            return ({None: "null", True: "true", False: "false"}[value],)
        if isinstance(value, str):
            if operator == "$eq":
                return ("text", operator, self._add(encode_text(value)))
            # code-point order is that of the text as it was given, not of its stored form
            return ("text", operator, self._add(value.encode()))
        self.has_numbers = True
        near = float(value)
        error = abs(near) * _RELATIVE_ERROR + _ABSOLUTE_ERROR
        return ("number", operator, self._add(value), self._add(near - error), self._add(near + error))


def conditions(shape: Tuple[Any, ...], column: Any) -> Tuple[Any, Any]:
    """Return the conditions "possible" and "certain" of a shape on the JSON text in `column`."""
    return _condition(shape, column, True), _condition(shape, column, False)


def _condition(shape: Tuple[Any, ...], column: Any, possible: bool) -> Any:
    kind = shape[0]
    if kind == "All":
        return and_(true(), *(_condition(part, column, possible) for part in shape[1:]))
    if kind == "AnyOf":
        return or_(false(), *(_condition(part, column, possible) for part in shape[1:]))
    if kind == "Not":
        return not_(_condition(shape[1], column, not possible))
    if kind == "Exists":
        there = _found(shape[1], column, lambda entry: None)
        return there if shape[2] else not_(there)
    _, steps, tests, negated = shape
    if not negated:
        return _found(steps, column, lambda entry: _some_element(entry, tests, possible))
    return _found(steps, column, lambda entry: not_(_some_element(entry, tests, not possible)))


def _each(source: Any, name: str) -> Any:
    return func.json_each(source).table_valued("key", "type", "value", "atom", name=name)


def _found(steps: Tuple[str, ...], column: Any, test: Any) -> Any:
    """Say that the path is there and its value passes `test`."""
    entry: Any = None
    tests: List[Any] = []
    for level, step in enumerate(steps):
        # what is no object has no keys; json_each would refuse a plain text
        source = column if entry is None else case((entry.c.type == "object", entry.c.value), else_="{}")
        entry = _each(source, f"e{level}")
        tests.append(entry.c.key == bindparam(step, type_=Text()))
    more = test(entry)
    return exists(literal_column("1")).where(*tests, *([] if more is None else [more]))


def _some_element(entry: Any, tests: Tuple[Tuple[str, ...], ...], possible: bool) -> Any:
    """Say that the value, or one element of a list, passes one of `tests`."""
    element = _each(case((entry.c.type == "array", entry.c.value), else_="[]"), "x")
    inside = exists(literal_column("1")).where(or_(false(), *(_passes(element, t, possible) for t in tests)))
    return or_(false(), *(_passes(entry, t, possible) for t in tests), inside)


def _passes(entry: Any, test: Tuple[str, ...], possible: bool) -> Any:
    kind = test[0]
    if kind == "text":
        text_type = entry.c.type == literal_column("'text'")
        if test[1] == "$eq":
            return and_(text_type, entry.c.atom == bindparam(test[2], type_=Text()))
        return and_(
            text_type, _compare(_as_given(entry.c.atom), test[1], bindparam(test[2], type_=LargeBinary()))
        )
    if kind != "number":
        return entry.c.type == literal_column({"null": "'null'", "true": "'true'", "false": "'false'"}[kind])
    compared = _compare(entry.c.atom, test[1], bindparam(test[2]))
    near = entry.c.atom.between(bindparam(test[3]), bindparam(test[4]))
    fraction = or_(compared, near) if possible else and_(compared, not_(near))
    return or_(
        and_(entry.c.type == literal_column("'integer'"), compared),
        and_(entry.c.type == literal_column("'real'"), fraction),
    )


def _compare(left: Any, operator: str, right: Any) -> Any:
    if operator == "$eq":
        return left == right
    if operator == "$gt":
        return left > right
    if operator == "$gte":
        return left >= right
    return left < right if operator == "$lt" else left <= right


def _as_given(atom: Any) -> Any:
    """Undo `values.encode_text` in SQL (U+E000 is 57344); bytes, which SQLite compares one by one."""
    without_nul = func.replace(atom, literal_column("char(57344, 48)"), literal_column("char(0)"))
    without = func.replace(without_nul, literal_column("char(57344, 49)"), literal_column("char(57344)"))
    return cast(without, LargeBinary)
