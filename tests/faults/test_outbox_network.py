"""P5: a commit whose answer is lost is told as unknown, `resolve` says what became of it, and a retry does not double.

And units of work that stage, through each fault of the proxy: whole or absent, and delivered when the network is back.
1,000 lost answers with `ATLAS_TEST_FULL=1`.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Dict

import pytest

from modules.storage.manager import StorageManager
from modules.storage.outbox_queue import OutboxEntry
from modules.storage.unit_of_work import OutcomeUnknownError
from modules.store_common.errors import StorageError
from tests.faults.proxy import Proxy

FULL = bool(os.environ.get("ATLAS_TEST_FULL"))
pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(1800 if FULL else 400)]


class Letters:
    """A target that counts deliveries of each version of a key."""

    def __init__(self) -> None:
        self.delivered: Counter[str] = Counter()
        self.state: Dict[str, Any] = {}

    async def apply(self, entry: OutboxEntry) -> None:
        self.delivered[entry.key] += 1
        self.state[entry.key] = entry.payload


async def _once(manager: StorageManager, number: int) -> bool:
    """Do unit `number`; returns whether it was done before."""
    async with manager.unit_of_work(f"unit-{number}", 20.0, body=number) as uow:
        await uow.kv.increment("effects", f"e{number}")
        uow.stage("letters", "letter", f"l{number}", number)
        uow.set_result(number)
    assert uow.result == number
    return uow.replayed


async def test_a_lost_answer_to_commit_is_resolved_and_not_doubled(own_server: Any, leaks: Any) -> None:
    count = 1000 if FULL else 30
    database = own_server.new_database()
    letters = Letters()
    unknown = applied = 0
    quiet = {"relay": False}  # its statements would meet the fault too, and nothing would be learnt from that
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        url = own_server.cluster.url(database, port=proxy.port)
        async with StorageManager({"sql": {"url": url, "auto_migrate": False}, "outbox": quiet}) as manager:
            manager.register_target("letters", letters.apply)
            for number in range(count):
                proxy.drop_reply(b"COMMIT")
                try:
                    await _once(manager, number)
                except OutcomeUnknownError:
                    unknown += 1
                proxy.heal()
                outcome = await manager.resolve(f"unit-{number}")
                applied += outcome.applied
                assert await _once(manager, number) == outcome.applied, "resolve() told the truth"
                assert await manager.kv.get("effects", f"e{number}") == 1
            await manager.outbox.drain(60)
    print(f"{count} units: {unknown} told as unknown, {applied} of them applied, 0 doubled")
    assert unknown == count <= proxy.hits["drop_reply"]
    assert applied == count, "the server had committed when its answer was lost"
    assert set(letters.state) == {f"l{number}" for number in range(count)}
    assert set(letters.delivered.values()) == {1}


@pytest.mark.parametrize("fault", ["latency", "slicer", "limit_data", "reset", "down", "timeout"])
async def test_units_that_stage_through_a_bad_network(own_server: Any, leaks: Any, fault: str) -> None:
    database = own_server.new_database()
    letters = Letters()
    told: Dict[int, str] = {}
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        url = own_server.cluster.url(database, port=proxy.port)
        sql = {"url": url, "auto_migrate": False}
        async with StorageManager({"sql": sql, "outbox": {"poll_interval_s": 0.1}}) as manager:
            manager.register_target("letters", letters.apply)
            for number in range(12):
                if number == 4:
                    await _begin(proxy, fault)
                if number == 8:
                    await _end(proxy, fault)
                told[number] = "done"
                try:
                    # what has to be done is given its time, what cannot be done is not waited for
                    hopeless = 4 <= number < 8 and fault not in ("latency", "slicer")
                    async with manager.unit_of_work(timeout=1.0 if hopeless else 60.0) as uow:
                        await uow.kv.set("home", f"l{number}", number)
                        uow.stage("letters", "letter", f"l{number}", number)
                except OutcomeUnknownError:
                    told[number] = "unknown"
                except StorageError:
                    told[number] = "failed"
            await manager.outbox.drain(60)
            home = {entry.key for entry in (await manager.kv.list("home")).entries}
    assert proxy.hits[fault] >= 1
    assert set(letters.state) == home, "what is at home is delivered, and nothing else"
    for number, what in told.items():
        assert what == "unknown" or (f"l{number}" in home) == (what == "done"), (number, what)
    assert [told[number] for number in (*range(4), *range(9, 12))] == ["done"] * 7
    if fault in ("latency", "slicer"):
        assert set(told.values()) == {"done"}
    print(f"{fault}: {dict(Counter(told.values()))}, hits {proxy.hits[fault]}")


async def _begin(proxy: Proxy, fault: str) -> None:
    if fault == "down":
        await proxy.down()
        return
    arguments = {"latency": (0.02,), "slicer": (7,), "limit_data": (1,)}.get(fault, ())
    getattr(proxy, fault)(*arguments)


async def _end(proxy: Proxy, fault: str) -> None:
    proxy.heal()
    if fault == "down":
        await proxy.up()
    if fault == "timeout":
        # links that swallowed bytes stay silent for ever; a real network would have reset them
        proxy.reset()
        proxy.heal()
