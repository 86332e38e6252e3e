"""The outbox: what a unit of work costs, how fast a relay is, how soon it has applied what was committed."""

from __future__ import annotations

import asyncio
import statistics
import time
import timeit
from pathlib import Path
from typing import Any, Callable, Dict, List

from benchmarks import postgresql_contest
from benchmarks.contest import Plan
from benchmarks.ours import open_storage
from benchmarks.report import Report, Row
from modules.storage.operations import Transaction, write
from modules.storage.outbox_queue import OutboxEntry, stage_many
from modules.storage.unit_contracts import OpenTransaction
from modules.storage.vectors.base import VectorDocument
from modules.store_common.deadlines import deadline_after

__all__ = ["run"]

_DIMENSION = 8
_ENTRIES = 10_000
# Calls of one side before it is the other's turn.
_TURN = 5


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure on both databases."""
    asyncio.run(_measure(report, plan, f"sqlite:///{directory / 'outbox.sqlite3'}", "SQLite", say))
    with postgresql_contest.server() as url:
        asyncio.run(_measure(report, plan, url, "PostgreSQL", say))
    report.rows.append(_failpoints())


async def _measure(report: Report, plan: Plan, url: str, group: str, say: Callable[[str], None]) -> None:
    async with open_storage(url) as storage:
        await storage.conversations.create_conversation("c")
        try:
            await storage.vectors.create_collection("docs", _DIMENSION)
        except Exception as exc:  # noqa: BLE001 - a server without pgvector: the row says so
            report.rows.append(
                Row(group, "unit / hand-written transaction", "<=", 1.3, detail=f"not measured: {exc}")
            )
        else:
            say(f"{group}: a unit beside a hand-written transaction")
            report.rows.append(await _unit(storage, plan, group))
        storage.register_target("instant", _instant)
        say(f"{group}: staging")
        report.rows.append(await _staging(storage, plan, group))
        say(f"{group}: relay")
        report.rows.append(await _relay(storage, plan, group))
        say(f"{group}: latency")
        report.rows.append(await _latency(storage, group))


async def _instant(entry: OutboxEntry) -> None:
    return


class _ByHand:
    """The same two writes in one transaction, without a unit of work around them: begin, two operations, commit."""

    def __init__(self, storage: Any) -> None:
        self._database = storage.executor
        self.transaction: Any = None
        self.dialect = self._database.dialect

    async def begin(self) -> OpenTransaction:
        self.transaction = self._database.unit(deadline_after(30.0))
        return self.transaction

    async def run(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.transaction.run(operation, args, kwargs)


async def _unit(storage: Any, plan: Plan, group: str) -> Row:
    from modules.conversation_store.repository import ConversationStore
    from modules.store_common.tenancy import TenantPolicy

    hand = _ByHand(storage)
    conversations = ConversationStore(hand, TenantPolicy())
    vectors = storage.vectors.within(hand)
    numbers = iter(range(10**9))

    def document() -> List[VectorDocument]:
        return [VectorDocument(f"d{next(numbers)}", [1.0] * _DIMENSION, "text", {"n": 1})]

    async def by_hand() -> None:
        transaction = await hand.begin()
        await conversations.add_message("c", "user", "hello")
        await vectors.upsert("docs", document())
        await transaction.commit()

    async def in_unit() -> None:
        async with storage.unit_of_work() as uow:
            await uow.conversations.add_message("c", "user", "hello")
            await uow.vectors.upsert("docs", document())

    theirs, ours = await _pairs(by_hand, in_unit, plan)
    values = [a / b for a, b in zip(ours, theirs)]
    return Row(
        group,
        "unit of work, message + vector / the same by hand",
        "<=",
        1.3,
        statistics.median(values),
        "x",
        f"{statistics.median(ours) * 1e6:.0f} us beside {statistics.median(theirs) * 1e6:.0f} us",
        (min(values), max(values)),
    )


async def _pairs(first: Any, second: Any, plan: Plan) -> Any:
    """Return mean seconds of a call of each, for each repetition; the two take turns of five calls within it."""
    results: List[List[float]] = [[], []]
    turns = 20 if plan.quick else 60
    for repetition in range(plan.repetitions + 1):
        spent = [0.0, 0.0]
        for turn in range(turns):
            # who begins changes, so that what follows on the other's writes is shared
            for place in (0, 1) if turn % 2 else (1, 0):
                started = time.perf_counter()
                for _ in range(_TURN):
                    await (first, second)[place]()
                spent[place] += time.perf_counter() - started
        if repetition:
            for place in (0, 1):
                results[place].append(spent[place] / (turns * _TURN))
    return results


async def _staging(storage: Any, plan: Plan, group: str) -> Row:
    numbers = iter(range(10**9))

    async def plain() -> None:
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "k", 1)

    async def staged() -> None:
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "k", 1)
            uow.stage("nobody", "page", f"k{next(numbers)}")

    theirs, ours = await _pairs(plain, staged, plan)
    rows = (await storage.outbox.stats()).targets["nobody"].pending / next(numbers)
    values = [a / b for a, b in zip(ours, theirs)]
    detail = f"a unit with one kv.set {statistics.median(theirs) * 1e6:.0f} us, staging too {statistics.median(values):.2f} x"
    return Row(group, "rows that staging one key inserts", "<=", 1.0, round(rows, 3), "rows", detail)


@write
async def _fill(tx: Transaction, first: int, count: int) -> None:
    entries = [(("default", "instant", "page", f"r{n:09}"), None) for n in range(first, first + count)]
    await stage_many(tx, entries)


async def _relay(storage: Any, plan: Plan, group: str) -> Row:
    rates = []
    for repetition in range(3):
        for first in range(0, _ENTRIES, 1000):
            await storage.executor.run(_fill, repetition * _ENTRIES + first, 1000)
        started = time.perf_counter()
        before = storage.outbox.counters.total("applied")
        await _until_clean(storage)
        applied = storage.outbox.counters.total("applied") - before
        rates.append(applied / (time.perf_counter() - started))
    return Row(
        group,
        "relay to an instant target",
        ">=",
        2000,
        statistics.median(rates),
        "entries/s",
        f"3 x up to {_ENTRIES:,} entries that wait; the manager's own relay",
        (min(rates), max(rates)),
    )


async def _until_clean(storage: Any) -> None:
    while True:
        found: Dict[str, Any] = (await storage.outbox.stats()).targets
        if "instant" not in found:
            return
        await storage.outbox.wait_for_progress(0.05)


async def _latency(storage: Any, group: str) -> Row:
    times = []
    for number in range(100):
        uow = storage.unit_of_work()
        async with uow:
            uow.stage("instant", "page", f"l{number}")
        started = time.perf_counter()
        await uow.applied(10)
        times.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.005)
    times.sort()
    return Row(
        group,
        "p50 from COMMIT to applied, idle",
        "<=",
        50.0,
        statistics.median(times),
        "ms",
        f"p99 {times[98]:.1f} ms",
    )


def _failpoints() -> Row:
    """What one failpoint costs that is off: the same loop with and without it."""
    set_up = "from modules.store_common import failpoints\ncount = 0"
    without = min(timeit.repeat("count += 1", set_up, number=2_000_000, repeat=7))
    with_it = min(timeit.repeat("count += 1\nif failpoints.armed: raise", set_up, number=2_000_000, repeat=7))
    nanoseconds = (with_it - without) / 2_000_000 * 1e9
    return Row(
        "any", "a failpoint that is off", "<=", 100.0, nanoseconds, "ns", "a unit of work meets five of them"
    )
