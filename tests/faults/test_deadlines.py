"""P11: every call ends by its deadline, even if the server is frozen or the network swallows every byte.

All public methods of the stores, found by introspection, with a deadline of 0.5 s: they must end within 1.0 s with one
of our typed errors, and the next call must succeed once the fault is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict, Tuple

import pytest

from modules.storage.manager import StorageManager
from modules.store_common.deadlines import deadline
from modules.store_common.errors import DeadlineExceededError, NotFoundError, StorageError, UnavailableError
from tests.faults.conftest import OwnServer
from tests.faults.proxy import Proxy
from tests.support.arguments import seed_tasks, store_calls
from tests.support.timing import allowance, assert_in_time

DEADLINE_S = 0.5
GRACE_S = 0.5


@asynccontextmanager
async def _manager(url: str, **sql: Any) -> AsyncIterator[StorageManager]:
    manager = StorageManager({"sql": {"url": url, "auto_migrate": False, **sql}})
    await manager.initialize()
    try:
        yield manager
    finally:
        await manager.shutdown()


async def _seed(manager: StorageManager) -> None:
    """Write what the calls read, and open connections."""
    await manager.conversations.create_conversation("c")
    await manager.conversations.add_message("c", "user", "hello", message_id="m")
    await seed_tasks(manager)
    await asyncio.gather(*(manager.kv.set("ns", f"k{n}", n) for n in range(20)))


async def _call_everything(manager: StorageManager) -> Tuple[Dict[str, str], Dict[str, float]]:
    """Return the outcome of every public method, made side by side, and by how many seconds it was late."""
    outcomes: Dict[str, str] = {}
    took: Dict[str, float] = {}
    began = time.monotonic()

    async def one(name: str, call: Any) -> None:
        started = time.monotonic()
        try:
            with deadline(DEADLINE_S):
                await call()
            outcomes[name] = "returned"
        except StorageError as exc:
            outcomes[name] = type(exc).__name__
        took[name] = time.monotonic() - started

    await asyncio.gather(*(one(name, call) for name, call in store_calls(manager)))
    limit = DEADLINE_S + GRACE_S
    if max(took.values()) > limit:
        limit += allowance(began)
    return outcomes, {name: seconds - limit for name, seconds in took.items() if seconds > limit}


def _check(outcomes: Dict[str, str], late: Dict[str, float]) -> None:
    assert len(outcomes) >= 30
    assert not late, f"by so many seconds later than they may be: {late}"
    wrong = {name: outcome for name, outcome in outcomes.items() if outcome not in _TYPED}
    assert not wrong, f"neither a deadline nor unavailable: {wrong}"


_TYPED = {DeadlineExceededError.__name__, UnavailableError.__name__, "PoolTimeoutError"}


async def _works_again(manager: StorageManager) -> None:
    with deadline(30):
        await manager.kv.set("ns", "after", 1)  # the very next call
        assert await manager.kv.get("ns", "after") == 1
    for name, call in store_calls(manager):
        try:
            with deadline(30):  # each by itself: there are more than a hundred
                await call()
        except NotFoundError:
            continue  # what an earlier method of the list deleted
        except StorageError as exc:
            assert not isinstance(exc, (DeadlineExceededError, UnavailableError)), name  # noqa: PT017


@pytest.mark.postgresql
@pytest.mark.parametrize("warm", [True, False], ids=["connections-open", "no-connection"])
async def test_a_frozen_server(own_server: OwnServer, leaks: Any, warm: bool) -> None:
    url = own_server.cluster.url(own_server.new_database())
    async with _manager(url) as manager:
        await _seed(manager)
        if not warm:
            manager.executor.pool().shrink()  # type: ignore[attr-defined]
        own_server.cluster.freeze()
        try:
            outcomes, late = await _call_everything(manager)
            started = time.monotonic()
            assert await manager.sql_pool.health_check(timeout=0.3) is False
            assert_in_time(started, 0.8)
        finally:
            own_server.cluster.thaw()
        await _works_again(manager)
    _check(outcomes, late)


@pytest.mark.postgresql
async def test_a_frozen_server_in_a_unit_of_work(own_server: OwnServer, leaks: Any) -> None:
    """Each statement of a unit, its COMMIT and its roll-back."""
    url = own_server.cluster.url(own_server.new_database())
    async with _manager(url) as manager:
        await _seed(manager)
        for frozen_at in ("first", "later", "commit"):
            started = 0.0
            while not started:  # a unit whose time was over before the server froze shows nothing
                with pytest.raises(StorageError):
                    async with manager.unit_of_work(timeout=DEADLINE_S) as uow:
                        if frozen_at != "first":
                            await uow.kv.set("ns", "unit", frozen_at)
                        own_server.cluster.freeze()
                        started = time.monotonic()
                        if frozen_at != "commit":
                            await uow.kv.set("ns", "unit", frozen_at)
            try:
                assert_in_time(started, DEADLINE_S + GRACE_S, frozen_at)
            finally:
                own_server.cluster.thaw()
            with deadline(30):
                await manager.kv.set("ns", "after", frozen_at)
        if await manager.kv.get("ns", "unit") is not None:
            assert await manager.kv.get("ns", "unit") == "commit"  # the one whose outcome is unknown


@pytest.mark.postgresql
async def test_a_frozen_server_at_opening_and_closing(
    own_server: OwnServer, leaks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_server.cluster.url(own_server.new_database())
    monkeypatch.setattr("modules.storage.pool._CLOSE_TIMEOUT_S", 1.0)  # 10 in production
    manager = StorageManager({"sql": {"url": url, "auto_migrate": False}})
    await manager.initialize()
    await _seed(manager)
    own_server.cluster.freeze()
    try:
        other = StorageManager({"sql": {"url": url, "connect_timeout_s": 0.5}})
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            await other.initialize()
        assert_in_time(started, 1.5)
        started = time.monotonic()
        await manager.shutdown()
        assert_in_time(started, 2.0)
    finally:
        own_server.cluster.thaw()
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}):
        pass  # the server answers again: half a second may be too short for its first words
    end = time.monotonic() + 60
    while not other.is_initialized:
        with contextlib.suppress(UnavailableError):
            await other.initialize()
        assert time.monotonic() < end, "it cannot be opened any more"
    async with other:
        assert await other.kv.get("ns", "k3") == 3


@pytest.mark.postgresql
@pytest.mark.parametrize("fault", ["timeout", "latency"])
async def test_a_network_that_swallows_or_delays(own_server: OwnServer, leaks: Any, fault: str) -> None:
    database = own_server.new_database()
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:  # noqa: SIM117
        async with _manager(own_server.cluster.url(database, port=proxy.port)) as manager:
            await _seed(manager)
            if fault == "timeout":
                proxy.timeout()
            else:
                proxy.latency(3.0)
            outcomes, late = await _call_everything(manager)
            hits = proxy.hits[fault]
            proxy.heal()
            await _works_again(manager)
    assert hits >= 10, "the fault was hardly met"
    _check(outcomes, late)


async def test_a_locked_sqlite_file(databases: Any, leaks: Any) -> None:
    """The same promise where the other process is a writer that does not let go."""
    import sqlite3

    url = databases.url("sqlite", migrated=True)
    async with _manager(url, sqlite_busy_timeout_s=1.0) as manager:
        await _seed(manager)
        blocker = sqlite3.connect(url.partition(":///")[2], isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        try:
            started = time.monotonic()
            with pytest.raises(StorageError), deadline(DEADLINE_S):
                await manager.kv.set("ns", "k", 1)
            assert_in_time(started, DEADLINE_S + GRACE_S)
            with deadline(30):  # the writer does not let go, however long one waits
                assert await manager.kv.get("ns", "k3") == 3  # readers do not wait for writers
        finally:
            blocker.execute("ROLLBACK")
            blocker.close()
        with deadline(30):
            await manager.kv.set("ns", "k", 2)
