"""P12: a server restart costs no operation that starts after it is back. And P5's first half: a lost answer to COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any, Dict, List, Tuple

import pytest

from modules.storage.manager import StorageManager
from modules.storage.unit_of_work import OutcomeUnknownError
from modules.store_common.errors import StorageError
from tests.faults.proxy import Proxy
from tests.support.leaks import wait_until

pytestmark = pytest.mark.postgresql

#: Answers to COMMIT that are lost.
TIMES = 1000 if os.environ.get("ATLAS_TEST_FULL") else 30


class _Load:
    """Tasks that read and write without a pause, and what became of each call."""

    def __init__(self, manager: StorageManager) -> None:
        self._manager = manager
        # started, operation, error or "", ended
        self.calls: List[Tuple[float, str, str, float]] = []
        self.acknowledged: Dict[str, int] = {}
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    async def more(self, count: int) -> None:
        """Return when `count` calls that begin now or later have ended."""
        since = time.monotonic()
        await wait_until(
            lambda: sum(call[0] >= since for call in self.calls) >= count, 60, "the load stands still"
        )

    async def run(self, worker: int) -> None:
        number = 0
        while not self._stopped:
            number += 1
            key = f"{worker}-{number}"
            await self._one("set", self._manager.kv.set("load", key, number))
            await self._one("get", self._manager.kv.get("load", key))
            await self._one(
                "append", self._manager.conversations.add_message("c", "user", key, message_id=key)
            )
            await self._one("unit", self._unit(key))

    async def _unit(self, key: str) -> None:
        async with self._manager.unit_of_work() as uow:
            await uow.kv.set("unit", key, 1)

    async def _one(self, operation: str, call: Any) -> None:
        started, error = time.monotonic(), ""
        try:
            await call
        except StorageError as exc:
            error = f"{type(exc).__name__}: {exc}"
        else:
            if operation in ("set", "append"):
                self.acknowledged[operation] = self.acknowledged.get(operation, 0) + 1
        self.calls.append((started, operation, error, time.monotonic()))


@pytest.mark.parametrize("how", ["restart", "kill", "disconnect-all"])
async def test_a_restart_under_load(own_server: Any, leaks: Any, how: str) -> None:
    database = own_server.new_database()
    async with StorageManager(
        {"sql": {"url": own_server.cluster.url(database), "auto_migrate": False}}
    ) as manager:
        await manager.conversations.create_conversation("c")
        load = _Load(manager)
        tasks = [asyncio.create_task(load.run(worker)) for worker in range(8)]
        gone: List[float] = []
        back: List[float] = []
        broken = 0
        for _ in range(2):
            await load.more(60)
            before = len(load.calls)
            gone.append(time.monotonic())
            if how == "disconnect-all":
                await asyncio.to_thread(_disconnect_all, own_server, database)
            else:
                await asyncio.to_thread(
                    own_server.cluster.stop if how == "restart" else own_server.cluster.kill
                )
                own_server.cluster.spawn()
                await wait_until(own_server.cluster.is_ready, 60)
            back.append(time.monotonic())
            await load.more(60)
            broken += sum(bool(error) for started, _, error, _ in load.calls[before:] if started < back[-1])
        load.stop()
        await asyncio.gather(*tasks)
        kept = {
            "set": len(await _all_keys(manager)),
            "append": (await manager.conversations.get_conversation("c")).last_sequence,  # type: ignore[union-attr]
        }
    # a call that was under way when the server went may fail, too
    after = [c for c in load.calls if back[0] <= c[0] and (c[3] < gone[1] or back[1] <= c[0])]
    failed = [c for c in after if c[2]]
    print(
        f"{how}: {len(load.calls)} calls, {len(after)} started with the server back, {broken} broken by the fault"
    )
    assert len(after) >= 100
    assert not failed, (
        f"{len(failed)} of {len(after)} calls that started after the server was back failed: {failed[:3]}"
    )
    assert broken >= 1, "no call met the fault"
    assert kept["set"] >= load.acknowledged["set"]
    assert kept["append"] >= load.acknowledged["append"]


def _disconnect_all(own_server: Any, database: str) -> None:
    """End every connection to `database`, and return when the server has done so: the signal alone is not the end."""
    of_database = f"FROM pg_stat_activity WHERE datname = '{database}'"
    rows = own_server.sql(f"SELECT pid, pg_terminate_backend(pid) {of_database}")
    pids = ", ".join(str(row[0]) for row in rows)
    give_up = time.monotonic() + 30
    while own_server.sql(f"SELECT 1 {of_database} AND pid IN ({pids})"):
        assert time.monotonic() < give_up, "the server did not end its connections"
        time.sleep(0.005)


async def _all_keys(manager: StorageManager) -> List[str]:
    keys: List[str] = []
    cursor = None
    while True:
        page = await manager.kv.list("load", limit=1000, cursor=cursor)
        keys += [entry.key for entry in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            return keys


async def test_an_answer_to_commit_that_never_comes(own_server: Any, leaks: Any) -> None:
    """The unit says that its outcome is unknown; the same message again with its key does not double."""
    database = own_server.new_database()
    url = own_server.cluster.url(database)
    unknown = 0
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        behind = own_server.cluster.url(database, port=proxy.port)
        async with StorageManager({"sql": {"url": behind, "auto_migrate": False}}) as manager:
            await manager.conversations.create_conversation("c")
            for number in range(TIMES):
                proxy.drop_reply(b"COMMIT")
                with contextlib.suppress(OutcomeUnknownError):
                    async with manager.unit_of_work() as uow:
                        await uow.conversations.add_message(
                            "c", "user", number, client_message_id=f"key-{number}"
                        )
                    continue
                unknown += 1
                assert uow.state.value == "outcome_unknown"
                proxy.heal()
                message = await manager.conversations.add_message(
                    "c", "user", number, client_message_id=f"key-{number}"
                )
                assert message.sequence == number + 1
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
        messages = await manager.conversations.load_recent_messages("c", 10_000)
    print(f"{unknown} unknown outcomes, {len(messages)} messages")
    assert unknown == TIMES <= proxy.hits["drop_reply"]  # the background tasks may meet it as well
    assert [m.content for m in messages] == list(range(TIMES))


@pytest.mark.parametrize("fault", ["reset", "down", "limit_data", "slicer"])
async def test_a_bad_network(own_server: Any, leaks: Any, fault: str) -> None:
    """Typed errors while it lasts, and the next call works when it is over; a slow one that slices does no harm."""
    database = own_server.new_database()
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        url = own_server.cluster.url(database, port=proxy.port)
        async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
            await asyncio.gather(*(manager.kv.set("ns", f"k{n}", n) for n in range(10)))
            if fault == "reset":
                proxy.reset()
            elif fault == "down":
                await proxy.down()
            elif fault == "limit_data":
                proxy.limit_data(1)
            else:
                proxy.slicer(3)
            outcomes = await asyncio.gather(
                *(manager.kv.set("bad", f"k{n}", n) for n in range(10)), return_exceptions=True
            )
            errors = [o for o in outcomes if isinstance(o, BaseException)]
            if fault == "down":
                await proxy.up()
            proxy.heal()
            await manager.kv.set("ns", "after", 1)
            assert await manager.kv.get("ns", "after") == 1
            stored = {entry.key: entry.value for entry in (await manager.kv.list("bad")).entries}
    assert proxy.hits[fault] >= 1
    assert all(isinstance(error, StorageError) and error.retryable for error in errors), errors
    assert stored == {f"k{n}": n for n in range(10) if f"k{n}" in stored}
    if fault == "slicer":
        assert not errors
        assert len(stored) == 10
    else:
        assert errors
