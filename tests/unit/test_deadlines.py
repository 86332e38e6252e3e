"""Deadlines of `modules.store_common.deadlines`."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from modules.store_common.deadlines import deadline, deadline_after
from modules.store_common.errors import InvalidValueError


def _left(default: float) -> float:
    return deadline_after(default) - time.monotonic()


def test_without_a_block_the_default_holds() -> None:
    assert 9.9 < _left(10) <= 10


def test_a_block_shortens_and_never_lengthens() -> None:
    with deadline(1):
        assert 0.9 < _left(10) <= 1
        assert _left(0.5) <= 0.5
        with deadline(100):
            assert _left(200) <= 1
        with deadline(0.2):
            assert _left(10) <= 0.2
        assert 0.5 < _left(10) <= 1
    assert _left(10) > 9


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_a_deadline_is_a_positive_finite_number(bad: float) -> None:
    with pytest.raises(InvalidValueError, match="greater than 0"), deadline(bad):
        pass
    assert _left(10) > 9


def test_the_block_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), deadline(1):
        raise KeyError
    assert _left(10) > 9


async def test_a_task_inherits_the_deadline_and_its_siblings_do_not() -> None:
    async def look() -> Any:
        return _left(10)

    with deadline(1):
        inner = asyncio.create_task(look())
    outer = asyncio.create_task(look())
    assert await inner <= 1
    assert await outer > 9
