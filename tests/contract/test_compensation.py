"""Compensating actions: when they run, in which order, and what happens when they fail."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from modules.storage.unit_of_work import RollbackError, UnitOfWork, UnitOfWorkError, UnitOfWorkState


@pytest.fixture
def unit(pool: Any) -> Any:
    return lambda timeout=60.0: UnitOfWork(pool.executor, lambda name, executor: executor, timeout_s=timeout)


async def test_nothing_is_compensated_after_a_commit(unit: Any) -> None:
    ran: List[int] = []
    async with unit() as uow:
        uow.add_compensating_action(lambda: ran.append(1))
    assert ran == []


async def test_newest_first_sync_and_async_after_an_error(unit: Any) -> None:
    ran: List[Any] = []

    async def second() -> None:
        await asyncio.sleep(0)
        ran.append(2)

    with pytest.raises(ZeroDivisionError):
        async with unit() as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(second)
            uow.add_compensating_action(lambda: ran.append((3, uow.state)))
            _ = 1 / 0
    assert ran == [(3, UnitOfWorkState.ROLLED_BACK), 2, 1], "newest first, after the rollback"


async def test_on_explicit_rollback_once(unit: Any) -> None:
    ran: List[int] = []
    async with unit() as uow:
        uow.add_compensating_action(lambda: ran.append(1))
        await uow.rollback()
        await uow.rollback()
    assert ran == [1]


async def test_on_cancellation(unit: Any) -> None:
    ran: List[int] = []
    inside = asyncio.Event()

    async def work() -> None:
        async with unit() as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(lambda: ran.append(2))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ran == [2, 1]


async def test_a_second_and_third_cancellation_do_not_stop_them(unit: Any) -> None:
    ran: List[int] = []
    inside, compensating, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        compensating.set()
        await go_on.wait()
        ran.append(2)

    async def work() -> None:
        async with unit() as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(slow)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await compensating.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    assert ran == []
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ran == [2, 1]


async def test_failures_are_collected_and_the_original_error_is_kept(unit: Any, caplog: Any) -> None:
    ran: List[int] = []

    def bad() -> None:
        raise KeyError("undo")

    async def worse() -> None:
        raise OSError("undo")

    with pytest.raises(RollbackError) as caught:
        async with unit() as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(bad)
            uow.add_compensating_action(worse)
            raise ZeroDivisionError("the reason")
    error = caught.value
    assert ran == [1], "the others ran all the same"
    assert [type(failure) for failure in error.failures] == [OSError, KeyError]
    assert isinstance(error.original, ZeroDivisionError)
    assert error.__cause__ is error.original
    assert "2 of its compensating actions failed" in str(error)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert "storage.unit_of_work.compensation_failed" in caplog.messages


async def test_failures_on_explicit_rollback(unit: Any) -> None:
    def bad() -> None:
        raise KeyError("undo")

    async with unit() as uow:
        uow.add_compensating_action(bad)
        with pytest.raises(RollbackError) as caught:
            await uow.rollback()
    assert caught.value.original is None


async def test_cancellation_passes_even_when_an_action_fails(unit: Any, caplog: Any) -> None:
    inside = asyncio.Event()

    def bad() -> None:
        raise KeyError("undo")

    async def work() -> None:
        async with unit() as uow:
            uow.add_compensating_action(bad)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "storage.unit_of_work.compensation_failed" in caplog.messages


async def test_an_action_that_was_cancelled_itself_does_not_stop_the_others(unit: Any) -> None:
    """For example one that awaits a task which is being cancelled by the same shutdown."""
    ran: List[int] = []

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RollbackError) as caught:
        async with unit() as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(cancelled)
            raise ZeroDivisionError
    assert ran == [1]
    assert isinstance(caught.value.original, ZeroDivisionError)


async def test_an_action_that_hangs_is_given_up_after_the_timeout(unit: Any) -> None:
    ran: List[int] = []

    async def hangs() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RollbackError) as caught:
        async with unit(0.1) as uow:
            uow.add_compensating_action(lambda: ran.append(1))
            uow.add_compensating_action(hangs)
            raise ZeroDivisionError
    assert ran == [1]
    assert isinstance(caught.value.failures[0], asyncio.TimeoutError)


async def test_the_error_pickles(unit: Any) -> None:
    import copy

    error = RollbackError("m", [KeyError("a")], ZeroDivisionError("b"))
    again = copy.copy(error)
    assert isinstance(again, UnitOfWorkError)
    assert str(again) == "m"
    assert len(again.failures) == 1
