"""Units of work on every back end: kept wholly or not at all, however the block ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from modules.storage.unit_of_work import UnitOfWorkError, UnitOfWorkState
from modules.store_common.errors import DeadlineExceededError, StorageError
from tests.support.leaks import wait_until


async def _keys(storage: Any) -> Any:
    return sorted([key for key in ("a", "b", "c") if await storage.kv.exists("n", key)])


async def test_commits_every_store_when_the_block_ends(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        assert uow.state is UnitOfWorkState.ACTIVE
        await uow.conversations.create_conversation(conversation_id="c1", title="t")
        await uow.conversations.add_message("c1", role="user", content="hello")
        await uow.kv.set("n", "a", 1)
    assert uow.state is UnitOfWorkState.COMMITTED
    assert await _keys(storage) == ["a"]
    assert [m.content for m in await storage.conversations.load_recent_messages("c1", limit=5)] == ["hello"]


async def test_states(storage: Any) -> None:
    uow = storage.unit_of_work()
    assert uow.state is UnitOfWorkState.PENDING
    with pytest.raises(UnitOfWorkError, match="pending"):
        _ = uow.kv
    async with uow:
        await uow.kv.set("n", "a", 1)
        await uow.rollback()
        assert uow.state is UnitOfWorkState.ROLLED_BACK
        await uow.rollback()
    assert await _keys(storage) == []
    async with storage.unit_of_work() as other:
        await other.kv.set("n", "b", 1)
        await other.commit()
        assert other.state is UnitOfWorkState.COMMITTED
        with pytest.raises(UnitOfWorkError, match="committed"):
            await other.rollback()
        with pytest.raises(UnitOfWorkError, match="committed"):
            await other.kv.get("n", "b")
    assert await _keys(storage) == ["b"]


async def test_rolls_back_on_an_error_and_lets_it_pass(storage: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "a", 1)
            _ = 1 / 0
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert await _keys(storage) == []


async def test_rolls_back_on_cancellation(storage: Any) -> None:
    inside = asyncio.Event()
    units = []

    async def work() -> None:
        async with storage.unit_of_work() as uow:
            units.append(uow)
            await uow.kv.set("n", "a", 1)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert units[0].state is UnitOfWorkState.ROLLED_BACK
    assert await _keys(storage) == []


async def test_after_its_end_everything_is_refused(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        kv = uow.kv
        await kv.set("n", "a", 1)
    for use in (
        lambda: kv.get("n", "a"),
        lambda: kv.set("n", "a", 2),
        uow.commit,
        lambda: uow.session().__aenter__(),
        uow.__aenter__,
    ):
        with pytest.raises(UnitOfWorkError, match="committed"):
            await use()
    with pytest.raises(UnitOfWorkError):
        uow.add_sql_operation(lambda session: None)
    with pytest.raises(UnitOfWorkError):
        uow.add_compensating_action(lambda: None)
    assert (await storage.kv.get("n", "a")) == 1


async def test_nesting_is_refused_in_the_same_task(storage: Any) -> None:
    async with storage.unit_of_work() as outer:
        await outer.kv.set("n", "a", 1)
        with pytest.raises(UnitOfWorkError, match="nest"):
            async with storage.unit_of_work():
                pytest.fail("a unit inside a unit was opened")
    assert await _keys(storage) == ["a"]
    async with storage.unit_of_work() as uow:  # one after the other is fine
        await uow.kv.set("n", "b", 1)
    assert await _keys(storage) == ["a", "b"]


async def test_a_failed_write_dooms_the_unit_even_when_its_error_is_caught(storage: Any) -> None:
    with pytest.raises(UnitOfWorkError, match="failed"):
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "a", 1)
            with pytest.raises(StorageError):
                await uow.conversations.add_message("no-such-conversation", role="user", content="x")
            with pytest.raises(UnitOfWorkError, match="rolled back"):
                await uow.kv.set("n", "b", 1)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert await _keys(storage) == []


async def test_a_value_that_is_refused_before_the_database_does_not_doom_the_unit(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        with pytest.raises(StorageError):
            await uow.kv.set("n", "a", float("nan"))
        await uow.kv.set("n", "b", 1)
    assert await _keys(storage) == ["b"]


async def test_a_read_that_finds_nothing_does_not_doom_the_unit(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        await uow.kv.set("n", "a", 1)
        assert await uow.conversations.get_conversation("none") is None
    assert await _keys(storage) == ["a"]


async def test_reads_see_the_units_own_writes(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        assert not await uow.kv.exists("n", "a")
        await uow.kv.set("n", "a", 1)
        assert await uow.kv.get("n", "a") == 1


async def test_the_deadline_rolls_back_while_the_block_sleeps(storage: Any) -> None:
    with pytest.raises(DeadlineExceededError):
        async with storage.unit_of_work(timeout=0.15) as uow:
            await uow.kv.set("n", "a", 1)
            await asyncio.sleep(0.3)
    assert uow.state is UnitOfWorkState.ROLLED_BACK, "nothing was sent: the outcome is known"
    assert await _keys(storage) == []


async def test_use_after_the_deadline_says_so(storage: Any) -> None:
    with pytest.raises(DeadlineExceededError):
        async with storage.unit_of_work(timeout=0.15) as uow:
            await uow.kv.set("n", "a", 1)
            await asyncio.sleep(0.3)
            await uow.kv.set("n", "b", 1)
    assert uow.state is UnitOfWorkState.ROLLED_BACK
    assert await _keys(storage) == []


async def test_others_go_on_as_soon_as_the_deadline_has_passed(storage: Any) -> None:
    async def sleeper(inside: asyncio.Event) -> None:
        async with storage.unit_of_work(timeout=1.0) as uow:
            await uow.kv.set("n", "a", 1)
            inside.set()
            await asyncio.Event().wait()

    while True:
        inside = asyncio.Event()
        task = asyncio.create_task(sleeper(inside))
        await wait_until(lambda: inside.is_set() or task.done(), 60)  # noqa: B023 - awaited here
        if inside.is_set():
            break
        # on a busy machine its time may be over before it has written
        assert isinstance(task.exception(), DeadlineExceededError)
    await asyncio.wait_for(storage.kv.set("n", "b", 2), 60)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _keys(storage) == ["b"]


async def test_a_unit_that_has_only_read_holds_nobody_up(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        assert await uow.kv.get("n", "a") is None

        async def other() -> None:
            async with storage.unit_of_work() as second:
                await second.kv.set("n", "b", 1)

        await asyncio.wait_for(asyncio.create_task(other()), 60)
        assert await uow.kv.get("n", "b") == 1


async def test_a_timeout_must_be_positive(storage: Any) -> None:
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(StorageError, match="timeout"):
            storage.unit_of_work(timeout=wrong)


async def test_units_side_by_side(storage: Any) -> None:
    async def work(number: int) -> None:
        async with storage.unit_of_work() as uow:
            await uow.kv.increment("n", "counter")
            await uow.kv.set("side", str(number), number)
            if number % 3 == 0:
                await uow.rollback()

    await asyncio.gather(*(work(number) for number in range(12)))
    assert await storage.kv.get("n", "counter") == 8
    assert [n for n in range(12) if await storage.kv.exists("side", str(n))] == [
        n for n in range(12) if n % 3
    ]


async def test_tasks_may_share_a_unit(storage: Any) -> None:
    async with storage.unit_of_work(timeout=60) as uow:
        await asyncio.wait_for(asyncio.gather(*(uow.kv.set("n", key, 1) for key in ("a", "b", "c"))), 60)
    assert await _keys(storage) == ["a", "b", "c"]


async def test_calls_beside_the_unit_in_its_own_task(storage: Any, backend: str) -> None:
    """On SQLite a write of the same task would wait for itself, so it is refused at once; PostgreSQL has room."""
    async with storage.unit_of_work(timeout=60) as uow:
        await uow.kv.set("n", "a", 1)
        if backend == "postgresql":
            await storage.kv.set("n", "b", 1)
        else:
            with pytest.raises(StorageError, match="wait for itself"):
                await storage.kv.set("n", "b", 1)
        if backend == "sqlite":
            assert await storage.kv.get("n", "a") is None, "others do not see what is not committed"
    assert await storage.kv.get("n", "a") == 1


async def test_self_wait_is_seen_when_another_task_wrote_first(storage: Any, backend: str) -> None:
    if backend == "postgresql":
        pytest.skip("PostgreSQL has a connection for each")
    async with storage.unit_of_work(timeout=60) as uow:
        await asyncio.gather(uow.kv.set("n", "a", 1))  # in a task of its own
        with pytest.raises(StorageError, match="wait for itself"):
            await storage.kv.set("n", "b", 1)


async def test_a_turn_held_long_is_told(storage: Any, backend: str, caplog: Any, monkeypatch: Any) -> None:
    if backend == "postgresql":
        pytest.skip("holds up nobody on PostgreSQL")
    from modules.storage.backends import sqlite_turn

    assert sqlite_turn._LONG_TURN_S == 1.0
    monkeypatch.setattr(sqlite_turn, "_LONG_TURN_S", 60.0)  # a slow machine holds any turn long
    with caplog.at_level(logging.WARNING):
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "a", 1)
        await storage.kv.set("n", "c", 1)
        assert "storage.sqlite.turn_held_long" not in caplog.messages
        monkeypatch.setattr(sqlite_turn, "_LONG_TURN_S", 0.5)
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "b", 1)
            await asyncio.sleep(0.6)
        # the commit is acknowledged a moment before the writer looks at its watch
        await storage.kv.set("n", "c", 1)
    assert caplog.messages.count("storage.sqlite.turn_held_long") == 1
