"""Deadlines of `modules.store_common.deadlines`."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, List

import pytest

from modules.store_common.deadlines import deadline, deadline_after, within
from modules.store_common.errors import InvalidValueError


def _left(default: float) -> float:
    return deadline_after(default) - time.monotonic()


def test_without_a_block_the_default_holds() -> None:
    assert 9_900 < _left(10_000) <= 10_000


def test_a_block_shortens_and_never_lengthens() -> None:
    with deadline(1_000):
        assert 900 < _left(10_000) <= 1_000
        assert _left(500) <= 500
        with deadline(100_000):
            assert _left(200_000) <= 1_000
        with deadline(200):
            assert _left(10_000) <= 200
        assert 500 < _left(10_000) <= 1_000
    assert _left(10_000) > 9_000


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_a_deadline_is_a_positive_finite_number(bad: float) -> None:
    with pytest.raises(InvalidValueError, match="greater than 0"), deadline(bad):
        pass
    assert _left(10_000) > 9_000


def test_the_block_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), deadline(1_000):
        raise KeyError
    assert _left(10_000) > 9_000


async def test_a_task_inherits_the_deadline_and_its_siblings_do_not() -> None:
    async def look() -> Any:
        return _left(10_000)

    with deadline(1_000):
        inner = asyncio.create_task(look())
    outer = asyncio.create_task(look())
    assert await inner <= 1_000
    assert await outer > 9_000


async def test_within_returns_the_result_and_raises_what_is_raised() -> None:
    async def give() -> int:
        return 7

    async def fail() -> int:
        raise KeyError("x")

    assert await within(give(), 60.0) == 7
    with pytest.raises(KeyError):
        await within(fail(), 60.0)


async def test_within_cancels_what_takes_longer() -> None:
    ended: List[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(asyncio.TimeoutError):
        await within(hang(), 0.01)
    assert ended == ["cancelled"]


async def test_within_lets_a_cancellation_pass_that_comes_with_the_result() -> None:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[str] = loop.create_future()
    discarded: List[str] = []

    async def call() -> str:
        return await within(result, 60.0, discard=discarded.append)

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    result.set_result("a connection")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert discarded == ["a connection"]
