"""The parser of the filter language, `matches`, and the SQL that is made of a filter."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Dict, List

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, select, table

from modules.storage.statements import Statement
from modules.storage.vectors.errors import VectorFilterError
from modules.storage.vectors.filters import (
    All,
    AnyOf,
    Comparison,
    Exists,
    Membership,
    Not,
    matches,
    parse_filter,
)
from modules.storage.vectors.sqlite_filters import conditions, parts_of
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import encode_json


@pytest.mark.parametrize(
    ("given_filter", "tree"),
    [
        (None, None),
        ({}, None),
        ({"a": 1}, Comparison(("a",), "$eq", 1)),
        ({"a.b": "x"}, Comparison(("a", "b"), "$eq", "x")),
        ({"a": {"$gt": 1}}, Comparison(("a",), "$gt", 1)),
        (
            {"a": {"$gt": 1, "$lte": 2}},
            All((Comparison(("a",), "$gt", 1), Comparison(("a",), "$lte", 2))),
        ),
        ({"a": {"$in": [1, "x"]}}, Membership(("a",), (1, "x"), False)),
        ({"a": {"$nin": []}}, Membership(("a",), (), True)),
        ({"a": {"$exists": False}}, Exists(("a",), False)),
        ({"a": {"$not": {"$eq": 1}}}, Not(Comparison(("a",), "$eq", 1))),
        ({"$not": {"a": None}}, Not(Comparison(("a",), "$eq", None))),
        ({"$and": [{"a": 1}]}, All((Comparison(("a",), "$eq", 1),))),
        (
            {"$or": [{"a": 1}, {"b": 2, "c": 3}]},
            AnyOf(
                (
                    Comparison(("a",), "$eq", 1),
                    All((Comparison(("b",), "$eq", 2), Comparison(("c",), "$eq", 3))),
                )
            ),
        ),
    ],
)
def test_a_filter_becomes_a_tree(given_filter: Any, tree: Any) -> None:
    assert parse_filter(given_filter) == tree


@pytest.mark.parametrize(
    "given_filter",
    ["a", [], 5, {"$gt": 1}, {"a": {"$regex": ""}}, {"a": []}, {"a": {}}, {"a..b": 1}, {"": 1}, {1: 1}, {"$or": []},
     {"a": {"$in": 1}}, {"a": {"$exists": 1}}, {"a": {"$lt": None}}, {"a": {"$gt": True}}, {"a": float("inf")},
     {"a": 2**64}, {"$not": {}}, {"$and": [{}]}, {"a": {"$eq": {"b": 1}}}],
)  # fmt: skip
def test_what_is_no_filter_is_refused(given_filter: Any) -> None:
    with pytest.raises(VectorFilterError) as caught:
        parse_filter(given_filter)
    assert isinstance(caught.value, InvalidValueError)


def test_size_and_depth_are_limited() -> None:
    deep: Dict[str, Any] = {"a": 1}
    for _ in range(30):
        deep = {"$not": deep}
    with pytest.raises(VectorFilterError, match="nested"):
        parse_filter(deep)
    with pytest.raises(VectorFilterError, match="more than"):
        parse_filter({"$or": [{"a": n} for n in range(600)]})


def test_the_message_does_not_hold_the_operand() -> None:
    with pytest.raises(VectorFilterError) as caught:
        parse_filter({"key": {"$nope": "the secret value"}})
    assert "secret" not in str(caught.value)


def test_a_missing_key_and_ne() -> None:
    assert not matches(parse_filter({"a": {"$ne": 1}}), {})
    assert matches(parse_filter({"$not": {"a": 1}}), {})
    assert matches(parse_filter({"a": {"$ne": 1}}), {"a": None})
    assert matches(None, {})


_scalars = st.one_of(
    st.sampled_from([0, 1, 9, 10, 0.1, 0.2, 0.30000000000000004, 1.0, -0.0, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63)]),
    st.sampled_from(["", "a", "b", "ab", "é", "\x00", "\ue000", "\ue0000", "\ue0001", "\U0001f600", "1", "true"]),
    st.sampled_from([True, False, None]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)  # fmt: skip
_keys = st.sampled_from(["a", "b", "a'b", 'a"b', "é", "\x00", "\ue000", "0", "%"])
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=5,
)
_paths = st.lists(_keys, min_size=1, max_size=2).map(".".join)
_ordered = _scalars.filter(lambda value: value is not None and not isinstance(value, bool))
_conditions = st.one_of(
    _scalars,
    st.builds(lambda operator, value: {operator: value}, st.sampled_from(["$eq", "$ne"]), _scalars),
    st.builds(lambda operator, value: {operator: value}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _ordered),
    st.builds(lambda operator, values: {operator: values}, st.sampled_from(["$in", "$nin"]), st.lists(_scalars, max_size=3)),
    st.builds(lambda expected: {"$exists": expected}, st.booleans()),
)  # fmt: skip
_filters = st.recursive(
    st.dictionaries(_paths, _conditions, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=4,
)
_T = table("t", column("metadata"))


def _sql(tree: Any, documents: List[Dict[str, Any]]) -> List[Any]:
    """Return (certain, possible) for each document, as SQLite says."""
    parts = parts_of(tree)
    assert parts is not None
    possible, certain = conditions(parts.shape, _T.c.metadata)
    compiled = Statement(select(certain, possible).select_from(_T)).compiled("sqlite")
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE t (metadata TEXT)")
        rows = [(str(encode_json(document, "metadata")),) for document in documents]
        connection.executemany("INSERT INTO t VALUES (?)", rows)
        return connection.execute(compiled.sql, compiled.bind(parts.params)).fetchall()
    finally:
        connection.close()


@settings(max_examples=150)
@given(_filters, st.lists(st.dictionaries(_keys, _values, max_size=3), min_size=1, max_size=6))
@example({"a": 0.1}, [{"a": 0.1}, {"a": 0.10000000000000002}])
@example({"$not": {"a": 0.1}}, [{"a": 0.1}, {"a": 0.10000000000000002}])
@example({"a": {"$ne": 0.1}}, [{"a": 0.1}, {"a": 0.10000000000000002}])
@example({"a": {"$gt": 1e308}}, [{"a": 1.7976931348623157e308}])
def test_sql_is_certain_only_where_the_reference_agrees(
    given_filter: Dict[str, Any], documents: List[Dict[str, Any]]
) -> None:
    tree = parse_filter(given_filter)
    for document, (certain, possible) in zip(documents, _sql(tree, documents)):
        truth = matches(tree, document)
        assert not certain or truth, f"SQL is certain of {json.dumps(document)}"
        assert possible or not truth, f"SQL leaves out {json.dumps(document)}"


def test_without_fractions_sql_decides_alone() -> None:
    tree = parse_filter({"a": {"$gt": 5}})
    assert _sql(tree, [{"a": 5}, {"a": 6}, {"a": 7.5}, {"a": "6"}, {"a": True}, {}]) == [
        (0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0),
    ]  # fmt: skip


def test_wide_filters_are_left_to_the_reference() -> None:
    assert parts_of(parse_filter({"a": {"$in": list(range(1000))}})) is None  # type: ignore[arg-type]
    assert parts_of(parse_filter({".".join("abcdefghijklmnopqrstuvwxyz"): 1})) is None  # type: ignore[arg-type]


def test_the_twin_that_pgvector_searches_is_made_where_it_differs_alone() -> None:
    from modules.storage.vectors.pgvector_filters import search_texts

    plain = [encode_json({"lang": "en", "n": number}, "the metadata") for number in range(3)]
    assert search_texts(plain) == []
    for value, twin in (
        (1e16, '{"x":10000000000000000}'),
        ("\x01", '{"x":"\\u0001\\u0002"}'),
        ("\x00", None),
    ):
        other = search_texts([*plain, encode_json({"x": value}, "the metadata")])
        assert other[:3] == [None, None, None]
        assert other[3] == (twin or '{"x":"\\u0001\\u0001"}')
    # the end of one text and the beginning of the next are not one number
    assert search_texts(["[1", "e2]"]) == []
