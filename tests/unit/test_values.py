"""The value contract of `modules.store_common.values`: what is refused, and that what is taken comes back the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import (
    MAX_DEPTH,
    MAX_IDENTIFIER_BYTES,
    JsonText,
    check_identifier,
    check_text,
    decode_json,
    decode_text,
    encode_json,
    encode_text,
)
from tests.support.values import contract_values, same, texts


@given(contract_values())
@example(-0.0)
@example([2**63 - 1, -(2**63)])
@example({"\x00": "\ue000", "\ue000": "\x00", "": [{}, []]})
@example("\\u0000")
@example("\ue0000")
@example(5e-324)
@example(1e16)
@example(9007199254740993)
def test_a_value_in_the_contract_comes_back_identical(value: Any) -> None:
    stored = encode_json(value, "value")
    assert type(stored) is JsonText
    assert "\x00" not in stored
    assert "\\u0000" not in stored.replace("\\\\", "")
    assert same(decode_json(stored), value)
    assert same(decode_json(stored.encode()), value)


def test_key_order_is_kept() -> None:
    value = {"b": 1, "a": 2, "\x00": 3, "c": 4}
    assert list(decode_json(encode_json(value, "value"))) == ["b", "a", "\x00", "c"]


class _Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "not a finite number"),
        ({"a": [1.0, math.inf]}, r"value\.a\[\] is not a finite number"),
        ([-math.inf], "not a finite number"),
        (2**63, "64 signed bits"),
        (-(2**63) - 1, "64 signed bits"),
        pytest.param(10**5000, "64 signed bits", id="5001 digits"),
        ("\ud800", "lone surrogate at position 0"),
        ({"k": {"\udfff": 1}}, "lone surrogate"),
        ({1: "a"}, "a key of type int"),
        ({None: "a"}, "a key of type NoneType"),
        ({True: "a"}, "a key of type bool"),
        ((1, 2), "of type tuple"),
        ({"a": {1, 2}}, r"value\.a is of type set"),
        (b"bytes", "of type bytes"),
        (_Text("subclass"), "of type _Text"),
        (object(), "of type object"),
    ],
)
def test_a_value_outside_the_contract_is_refused_by_path(value: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        encode_json(value, "value")


def _nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_depth_is_bounded_and_never_a_recursion_error() -> None:
    assert same(decode_json(encode_json(_nested(MAX_DEPTH), "value")), _nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidValueError, match="deeper than 100"):
            encode_json(_nested(levels), "value")


def test_a_value_that_holds_itself_is_refused() -> None:
    value: Any = []
    value.append(value)
    with pytest.raises(InvalidValueError, match="deeper"):
        encode_json(value, "value")


def test_size_is_counted_in_stored_bytes() -> None:
    assert encode_json("ä" * 4, "value", max_bytes=10) == '"ääää"'
    with pytest.raises(InvalidValueError, match="11 bytes of JSON; at most 10"):
        encode_json("ä" * 4 + "a", "value", max_bytes=10)
    with pytest.raises(InvalidValueError, match="at most 5"):  # NUL is stored as four bytes
        encode_json("\x00", "value", max_bytes=5)


def test_messages_never_hold_the_value() -> None:
    for value in ("secret\ud800", ["secret", float("nan")], {"secret": object()}):
        with pytest.raises(InvalidValueError) as caught:
            encode_json(value, "value")
        assert "secret" not in str(caught.value).replace("value.secret", "")


@given(texts())
@example("\x00")
@example("\ue000" + "0")
@example("\ue000" * 3 + "\x00" * 3)
def test_text_comes_back_identical_without_nul_in_the_store(text: str) -> None:
    stored = encode_text(text)
    assert "\x00" not in stored
    assert decode_text(stored) == text


@given(texts(), texts())
def test_the_text_code_is_one_to_one_and_keeps_prefixes(a: str, b: str) -> None:
    assert (encode_text(a) == encode_text(b)) == (a == b)
    assert encode_text(a + b) == encode_text(a) + encode_text(b)


def test_none_stays_none() -> None:
    assert encode_text(None) is None
    assert decode_text(None) is None


@pytest.mark.parametrize(
    "good", ["a", "a b", "ä", "名前", "a" * MAX_IDENTIFIER_BYTES, "'; DROP TABLE x; --", "\ue000"]
)
def test_identifiers_that_are_taken(good: str) -> None:
    assert check_identifier(good, "id") is good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        " a",
        "a ",
        "a\n",
        "\ta",
        "a\x00b",
        "a\x1fb",
        "a\x7fb",
        "\ud800",
        "a" * 256,
        "ä" * 128,
        "\u00a0a",
        None,
        1,
        b"a",
    ],
)
def test_identifiers_that_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="id "):
        check_identifier(bad, "id")


@given(st.text(max_size=300))
def test_an_identifier_is_taken_whole_or_refused(text: str) -> None:
    try:
        assert check_identifier(text, "id") == text
    except InvalidValueError:
        return
    assert text.strip() == text
    assert 1 <= len(text.encode()) <= MAX_IDENTIFIER_BYTES
    assert not any(ord(c) < 32 or ord(c) == 127 for c in text)


def test_check_text() -> None:
    assert check_text("", "text") == ""
    assert check_text("ä\x00", "text", max_bytes=3) == "ä\x00"
    for bad in ("ää", "\udc00", None, 3, b"x"):
        with pytest.raises(InvalidValueError, match="text "):
            check_text(bad, "text", max_bytes=3)  # type: ignore[arg-type]
