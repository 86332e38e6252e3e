"""Cursors of `modules.store_common.cursors`: opaque, bound to a tenant, a list and its filters."""

from __future__ import annotations

import base64
from typing import Any, List

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidCursorError, InvalidValueError

_position = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1)), max_size=4
)


@given(_position)
def test_a_cursor_gives_its_position_back(position: List[Any]) -> None:
    cursor = encode_cursor("acme", "messages", position, filters={"role": "user"})
    assert decode_cursor(cursor, "acme", "messages", len(position), filters={"role": "user"}) == position
    assert cursor.isascii()
    assert not set(cursor) & set("+/= ")


def test_no_cursor_is_the_beginning() -> None:
    assert decode_cursor(None, "acme", "messages", 1) is None


def test_the_order_of_filters_does_not_matter() -> None:
    cursor = encode_cursor("acme", "messages", [1], filters={"a": 1, "b": 2})
    assert decode_cursor(cursor, "acme", "messages", 1, filters={"b": 2, "a": 1}) == [1]


@pytest.mark.parametrize(
    ("tenant", "kind", "filters"),
    [
        ("evil", "messages", {"role": "user"}),
        ("acme", "events", {"role": "user"}),
        ("acme", "messages", {"role": "system"}),
        ("acme", "messages", None),
        ("acmemessages", "", {"role": "user"}),
    ],
)
def test_a_cursor_of_another_scope_is_refused(tenant: str, kind: str, filters: Any) -> None:
    cursor = encode_cursor("acme", "messages", [7], filters={"role": "user"})
    with pytest.raises(InvalidCursorError, match="not made for this list"):
        decode_cursor(cursor, tenant, kind, 1, filters=filters)


def test_a_position_of_another_length_is_refused() -> None:
    cursor = encode_cursor("acme", "messages", [7])
    with pytest.raises(InvalidCursorError, match="damaged"):
        decode_cursor(cursor, "acme", "messages", 2)


@pytest.mark.parametrize("payload", [b"", b"{", b'{"a":1}', b"null", b"7", b"\xff"])
def test_a_position_that_is_no_list_is_refused(payload: bytes) -> None:
    tag = base64.urlsafe_b64decode(encode_cursor("acme", "messages", []) + "==")[:12]
    forged = base64.urlsafe_b64encode(tag + payload).decode()
    with pytest.raises(InvalidCursorError, match="damaged"):
        decode_cursor(forged, "acme", "messages", 1)


@given(st.one_of(st.text(), st.text(alphabet="ABCabc012-_=+/")))
def test_any_text_is_refused_with_a_typed_error(text: str) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(text, "acme", "messages", 1)


@pytest.mark.parametrize("wrong", [b"abc", 7, ["x"], orjson.dumps([1])])
def test_a_cursor_of_another_type_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidValueError, match="a cursor is a str"):
        decode_cursor(wrong, "acme", "messages", 1)


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_never_gives_another_tenants_page(index: int, bit: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(encode_cursor("acme", "messages", ["x", 12]) + "=="))
    data[index % len(data)] ^= 1 << bit
    flipped = base64.urlsafe_b64encode(bytes(data)).decode()
    try:
        position = decode_cursor(flipped, "acme", "messages", 2)
    except InvalidCursorError:
        return
    assert index % len(data) >= 12  # the tag was whole: it still is this tenant's list
    assert isinstance(position, list)
    assert len(position) == 2
