"""The coalescer by itself: who travels with whom, and who gets which outcome. No database."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, List, Tuple

import pytest

from modules.storage.backends.coalescing import Coalescer
from modules.storage.operations import Transaction, write
from modules.store_common.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    OverloadedError,
    UnavailableError,
)


async def _never(tx: Transaction, calls: Any) -> Any:
    raise AssertionError


@write(batch=_never, conflict_key=lambda key, value: key)
async def put(tx: Transaction, key: str, value: int) -> None: ...


@write(batch=_never)
async def other(tx: Transaction, key: str, value: int) -> None: ...


@write(batch=_never, order_key=lambda key, value: key)
async def ordered(tx: Transaction, key: str, value: int) -> None: ...


class Database:
    """Records what reaches it; every statement waits for `gate`."""

    def __init__(self) -> None:
        self.log: List[Any] = []
        self.gate = asyncio.Event()
        self.fail: Any = None
        self.bad: Any = None

    async def one(self, operation: Any, args: Tuple[Any, ...], deadline: float) -> Any:
        self.log.append(args)
        await self.gate.wait()
        if args[0] == self.bad:
            raise AlreadyExistsError("taken")
        return args[1]

    async def batch(self, operation: Any, calls: Any, deadline: float) -> Any:
        self.log.append(list(calls))
        await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        return [AlreadyExistsError("taken") if key == "own" else value for key, value in calls]


def _soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _start(coalescer: Coalescer, *calls: Tuple[str, int], operation: Any = put) -> List[Any]:
    return [asyncio.create_task(coalescer.call(operation, call, _soon())) for call in calls]


@pytest.fixture
async def database() -> Database:
    return Database()


def _make(database: Database, places: int = 1, max_waiting: int = 100) -> Coalescer:
    return Coalescer(database.one, database.batch, places=places, max_waiting=max_waiting)


async def test_a_lone_call_goes_at_once_by_itself(database: Database) -> None:
    database.gate.set()
    assert await _make(database).call(put, ("a", 1), _soon()) == 1
    assert database.log == [("a", 1)]


async def test_those_who_come_meanwhile_leave_together_in_order(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("a", 1), ("b", 2), ("c", 3), ("d", 4))
    await _settle()
    assert database.log == [("a", 1)], "one place, one statement"
    database.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4]
    assert database.log == [("a", 1), [("b", 2), ("c", 3), ("d", 4)]]


async def test_places(database: Database) -> None:
    coalescer = _make(database, places=2)
    tasks = _start(coalescer, ("a", 1), ("b", 2), ("c", 3))
    await _settle()
    assert database.log == [("a", 1), ("b", 2)]
    database.gate.set()
    await asyncio.gather(*tasks)


async def test_those_who_leave_together_are_spread_over_the_places(database: Database) -> None:
    coalescer = _make(database, places=2)
    calls = [(str(n), n) for n in range(23)]
    tasks = _start(coalescer, *calls)
    await _settle()
    assert database.log == calls[:2], "the first two took the places"
    database.gate.set()
    assert await asyncio.gather(*tasks) == list(range(23))
    assert database.log[2:] == [calls[2:13], calls[13:]], "the rest left in two halves"


async def test_a_few_calls_are_not_spread(database: Database) -> None:
    coalescer = _make(database, places=2)
    calls = [(str(n), n) for n in range(10)]
    tasks = _start(coalescer, *calls)
    await _settle()
    database.gate.set()
    await asyncio.gather(*tasks)
    assert database.log == [*calls[:2], calls[2:]]


async def test_operations_do_not_wait_for_each_other(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("a", 1)) + _start(coalescer, ("a", 2), operation=other)
    await _settle()
    assert database.log == [("a", 1), ("a", 2)]
    database.gate.set()
    await asyncio.gather(*tasks)


async def test_calls_that_conflict_never_share_a_statement_and_keep_their_order(database: Database) -> None:
    coalescer = _make(database)
    calls = [("x", 0), ("a", 1), ("b", 2), ("a", 3), ("c", 4), ("a", 5)]
    tasks = _start(coalescer, *calls)
    await _settle()
    database.gate.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4, 5]
    assert database.log == [("x", 0), [("a", 1), ("b", 2), ("c", 4)], ("a", 3), ("a", 5)]


async def test_calls_that_keep_their_order_are_never_in_two_statements(database: Database) -> None:
    """Of two connections either may be the first to get the row: the second call would be stored before the first."""
    coalescer = _make(database, places=2)
    tasks = _start(coalescer, ("a", 1), ("a", 2), ("b", 3), ("a", 4), ("c", 5), operation=ordered)
    await _settle()
    assert database.log == [("a", 1), [("b", 3), ("c", 5)]], "the others use the second place"
    database.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4, 5]
    assert database.log[2:] == [[("a", 2), ("a", 4)]]


async def test_a_call_whose_order_is_kept_holds_up_no_other_that_comes_later(database: Database) -> None:
    coalescer = _make(database, places=2)
    tasks = _start(coalescer, ("a", 1), ("a", 2), operation=ordered)
    await _settle()
    tasks += _start(coalescer, ("b", 3), operation=ordered)
    await _settle()
    assert database.log == [("a", 1), ("b", 3)]
    database.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3]


async def test_a_cancelled_call_frees_its_key(database: Database) -> None:
    coalescer = _make(database, places=2)
    tasks = _start(coalescer, ("a", 1), ("a", 2), operation=ordered)
    await _settle()
    tasks[0].cancel()
    database.gate.set()
    assert await asyncio.wait_for(tasks[1], 60) == 2


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_takes_how_long_each_key_keeps_its_order(seed: int) -> None:
    """Statements end in any order; calls come in bursts, from 1 to 400 at once; some are cancelled while they wait."""
    choose = random.Random(seed)
    under_way: List[str] = []
    stored: List[Tuple[str, int]] = []

    async def store(calls: List[Tuple[str, int]]) -> List[int]:
        keys = {key for key, _ in calls}
        assert not keys.intersection(under_way), "never in two statements at once"
        under_way.extend(keys)
        try:
            for _ in range(choose.randrange(6)):
                await asyncio.sleep(0)
            stored.extend(calls)
        finally:
            for key in keys:
                under_way.remove(key)
        return [value for _, value in calls]

    async def one(operation: Any, args: Tuple[Any, ...], deadline: float) -> Any:
        return (await store([args]))[0]

    async def batch(operation: Any, calls: Any, deadline: float) -> Any:
        assert len(calls) <= 256
        return await store(list(calls))

    coalescer = Coalescer(one, batch, places=choose.choice([1, 2, 3]), max_waiting=10_000)
    tasks: List[Any] = []
    cancelled = set()
    for _ in range(30):
        for _ in range(choose.choice([1, 1, 2, 20, 400])):
            tasks += _start(coalescer, (choose.choice("abcdefgh"), len(tasks)), operation=ordered)
        if choose.random() < 0.5:
            number = choose.randrange(len(tasks))
            if not tasks[number].done():
                tasks[number].cancel()
                cancelled.add(number)
        for _ in range(choose.randrange(8)):
            await asyncio.sleep(0)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [n for n, outcome in enumerate(done) if outcome != n] == sorted(cancelled)
    assert {value for _, value in stored} >= set(range(len(tasks))) - cancelled
    for key in "abcdefgh":
        values = [value for other_key, value in stored if other_key == key]
        assert values == sorted(values)


async def test_each_gets_its_own_error(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("own", 2), ("b", 3))
    await _settle()
    database.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert done[:2] == [0, 1]
    assert isinstance(done[2], AlreadyExistsError)
    assert done[3] == 3


async def test_a_batch_that_fails_as_a_whole_is_run_one_by_one(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("b", 2), ("c", 3))
    await _settle()
    database.fail, database.bad = AlreadyExistsError("someone's key"), "b"
    database.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [done[0], done[1], done[3]] == [0, 1, 3]
    assert isinstance(done[2], AlreadyExistsError)
    assert database.log[1:] == [[("a", 1), ("b", 2), ("c", 3)], ("a", 1), ("b", 2), ("c", 3)]


@pytest.mark.parametrize("error", [UnavailableError("gone"), DeadlineExceededError("late")])
async def test_a_write_whose_outcome_is_not_known_is_not_repeated(database: Database, error: Any) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("b", 2))
    await _settle()
    database.fail = error
    database.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in done[1:]] == [type(error)] * 2
    assert done[1] is not done[2], "each its own exception, with its own traceback"
    assert len(database.log) == 2


async def test_a_cancelled_call_that_waits_never_goes(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("b", 2))
    await _settle()
    tasks[1].cancel()
    await _settle()
    database.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert done[2] == 2
    assert ("a", 1) not in [
        call for item in database.log for call in (item if isinstance(item, list) else [item])
    ]


async def test_a_cancelled_caller_in_a_batch_disturbs_no_other(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("b", 2))
    await _settle()
    database.gate.set()
    await tasks[0]
    database.gate.clear()
    await _settle()
    tasks[1].cancel()
    await _settle()
    database.gate.set()
    assert await asyncio.wait_for(tasks[2], 60) == 2


async def test_a_cancelled_lone_call_frees_its_place(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0), ("a", 1))
    await _settle()
    tasks[0].cancel()
    database.gate.set()
    assert await asyncio.wait_for(tasks[1], 60) == 1


async def test_a_call_that_waits_ends_at_its_deadline(database: Database) -> None:
    coalescer = _make(database)
    tasks = _start(coalescer, ("x", 0))
    await _settle()
    with pytest.raises(DeadlineExceededError):
        await asyncio.wait_for(coalescer.call(put, ("a", 1), _soon(0.05)), 60)
    database.gate.set()
    await asyncio.gather(*tasks)
    await _settle()
    assert database.log == [("x", 0)], "it never went"
    assert await coalescer.call(put, ("b", 2), _soon()) == 2


async def test_waiting_calls_are_bounded(database: Database) -> None:
    coalescer = _make(database, max_waiting=2)
    tasks = _start(coalescer, ("x", 0), ("a", 1), ("b", 2))
    await _settle()
    with pytest.raises(OverloadedError, match="2 calls of put"):
        await coalescer.call(put, ("c", 3), _soon())
    database.gate.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2]


async def test_drain_waits_for_batches_under_way(database: Database) -> None:
    coalescer = _make(database, max_waiting=1000)
    tasks = _start(coalescer, *((str(n), n) for n in range(600)))
    await _settle()
    database.gate.set()
    await tasks[0]
    await asyncio.wait_for(coalescer.drain(), 60)
    await _settle()
    assert all(task.done() for task in tasks)
    assert max(len(item) for item in database.log if isinstance(item, list)) <= 256
    assert [task.result() for task in tasks] == list(range(600))
