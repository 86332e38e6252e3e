"""Hypothesis strategies for the value contract, and equality that also sees types and the sign of zero."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

__all__ = ["any_values", "contract_values", "same", "texts"]

# Characters that stores stumble over, more often than chance gives them.
_HARD = [
    "\x00",
    "\ue000",
    "\ue0000",
    "\ue0001",
    "\\u0000",
    "'",
    '"',
    "\\",
    "%",
    "_",
    "\u2028",
    "\U0001f600",
    "\x7f",
    "é",
    "e\u0301",
]


def texts(*, max_size: int = 40) -> st.SearchStrategy[str]:
    """Text without lone surrogates, NUL and our own escape character included."""
    plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)
    return st.one_of(plain, st.lists(st.sampled_from(_HARD), max_size=6).map("".join), st.sampled_from(_HARD))


def _scalars() -> st.SearchStrategy[Any]:
    edges = st.sampled_from(
        [0, -0.0, 0.0, 2**63 - 1, -(2**63), 2**53 + 1, 1e308, 5e-324, 1e16, 1.0, True, False, None]
    )
    return st.one_of(
        edges,
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        texts(),
    )


def contract_values(*, max_leaves: int = 12) -> st.SearchStrategy[Any]:
    """JSON values that the contract takes."""
    return st.recursive(
        _scalars(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=5), st.dictionaries(texts(max_size=12), inner, max_size=5)
        ),
        max_leaves=max_leaves,
    )


def any_values() -> st.SearchStrategy[Any]:
    """Values inside and outside of the contract."""
    bad = st.one_of(
        st.sampled_from(
            [float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800", "a\udfff", b"x", (1,), 1j]
        ),
        st.integers(min_value=2**63),
        st.builds(lambda: 10**4999),  # built, since its repr is refused by Python
        st.datetimes(),
        st.decimals(allow_nan=True),
        st.binary(max_size=4),
    )
    odd_keys = st.one_of(st.integers(), st.none(), st.booleans(), st.just("\ud800"))
    leaf = st.one_of(_scalars(), _scalars(), _scalars(), bad)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.one_of(texts(max_size=8), texts(max_size=8), odd_keys), inner, max_size=4),
            st.tuples(inner),
        ),
        max_leaves=8,
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in type, order of keys and every bit of every float."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
