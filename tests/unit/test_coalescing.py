"""Who leaves when, and with whom. Runners that are driven by hand stand for the database."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Sequence, Tuple

import pytest

from modules.storage.backends.coalescing import Coalescer
from modules.storage.operations import Operation, Transaction, read
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import ConstraintError, OverloadedError


async def _batch(tx: Transaction, calls: Sequence[Tuple[Any, ...]]) -> Sequence[Any]:
    raise AssertionError("the runners below stand for it")


@read(batch=_batch)
async def look(tx: Transaction, number: int) -> int:
    raise AssertionError("the runners below stand for it")


class _Runners:
    """Notes what runs; each statement ends when the test says so, with ten times its arguments."""

    def __init__(self, places: int = 1, max_waiting: int = 100) -> None:
        self.statements: List[List[int]] = []
        self.refused: Dict[int, Exception] = {}
        self._ends: List[asyncio.Future[None]] = []
        self.coalescer = Coalescer(self._one, self._many, places=places, max_waiting=max_waiting)

    def call(self, number: int) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.coalescer.call(look, (number,), deadline_after(30.0)))

    async def _one(self, operation: Operation[Any, Any], args: Tuple[Any, ...], deadline: float) -> Any:
        outcomes = await self._many(operation, [args], deadline)
        return outcomes[0]

    async def _many(
        self, operation: Operation[Any, Any], calls: Sequence[Tuple[Any, ...]], deadline: float
    ) -> Any:
        numbers = [args[0] for args in calls]
        self.statements.append(numbers)
        end = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        await end
        for number in numbers:
            if number in self.refused:
                raise self.refused[number]
        return [number * 10 for number in numbers]

    def end(self, statement: int) -> None:
        self._ends[statement].set_result(None)


async def _turns(count: int = 8) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_call_goes_at_once_by_itself() -> None:
    runners = _Runners()
    for number in range(3):
        task = runners.call(number)
        await asyncio.sleep(0)
        assert runners.statements[-1] == [number], "it waited for something"
        runners.end(number)
        assert await task == number * 10


async def test_those_who_come_meanwhile_leave_together() -> None:
    runners = _Runners()
    tasks = [runners.call(number) for number in range(5)]
    await _turns()
    assert runners.statements == [[0]]
    runners.end(0)
    await _turns()
    assert runners.statements == [[0], [1, 2, 3, 4]]
    runners.end(1)
    assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40]


async def test_callers_who_come_back_together_leave_together() -> None:
    runners = _Runners()

    async def twice(number: int) -> List[Any]:
        deadline, call = deadline_after(30.0), runners.coalescer.call
        return [await call(look, (number,), deadline), await call(look, (number + 100,), deadline)]

    tasks = [asyncio.ensure_future(twice(number)) for number in range(4)]
    await _turns()
    runners.end(0)
    await _turns()
    runners.end(1)
    await _turns(20)
    # 100 came back first; 101, 102 and 103 were in a batch with others and go as one, none of them alone
    assert sorted(runners.statements[1]) == [1, 2, 3, 100]
    assert runners.statements[2:] == [[101, 102, 103]]
    runners.end(2)
    assert await asyncio.gather(*tasks) == [[n * 10, n * 10 + 1000] for n in range(4)]


async def test_after_company_a_lone_call_is_lone_again() -> None:
    runners = _Runners()
    tasks = [runners.call(number) for number in range(3)]
    await _turns()
    runners.end(0)
    await _turns()
    runners.end(1)
    await asyncio.gather(*tasks)
    first = runners.call(7)
    await _turns()
    runners.end(2)
    await first
    second = runners.call(8)
    await asyncio.sleep(0)
    assert runners.statements == [[0], [1, 2], [7], [8]]
    runners.end(3)
    assert await second == 80


async def test_a_batch_that_fails_is_run_one_by_one() -> None:
    runners = _Runners()
    runners.refused[2] = ConstraintError("not this one")
    tasks = [runners.call(number) for number in range(4)]
    await _turns()
    for statement in range(5):
        runners.end(statement)
        await _turns()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert runners.statements == [[0], [1, 2, 3], [1], [2], [3]]
    assert [type(outcome) for outcome in outcomes] == [int, int, ConstraintError, int]


async def test_a_cancelled_call_does_not_leave() -> None:
    runners = _Runners()
    tasks = [runners.call(number) for number in range(3)]
    await _turns()
    tasks[1].cancel()
    await _turns()
    runners.end(0)
    await _turns()
    assert runners.statements == [[0], [2]]
    runners.end(1)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_draining_waits_for_those_about_to_leave() -> None:
    runners = _Runners()
    tasks = [runners.call(number) for number in range(3)]
    await _turns()
    runners.end(0)
    await tasks[0]
    draining = asyncio.ensure_future(runners.coalescer.drain())
    await _turns()
    assert not draining.done()
    runners.end(1)
    await draining
    assert await asyncio.gather(*tasks[1:]) == [10, 20]


async def test_too_many_are_refused() -> None:
    runners = _Runners(max_waiting=2)
    tasks = [runners.call(number) for number in range(3)]
    await _turns()
    with pytest.raises(OverloadedError):
        await runners.call(9)
    runners.end(0)
    await _turns()
    runners.end(1)
    await asyncio.gather(*tasks)
