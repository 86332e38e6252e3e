"""P17: the stores work through PgBouncer in transaction mode, told (`pooler=transaction`) or found out (`pooler=auto`)."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest

from modules.job_store.errors import JobLeaseLostError
from modules.storage.manager import StorageManager
from modules.store_common.errors import NotFoundError
from tests.support.arguments import seed_tasks, store_calls
from tests.support.pooler import pooler
from tests.support.worker import Bench

pytestmark = pytest.mark.postgresql


@pytest.mark.parametrize("told", ["auto", "transaction"])
async def test_stores_through_the_pooler(
    pgbouncer: str, postgres: Any, databases: Any, leaks: Any, told: str
) -> None:
    name = urlsplit(databases.url("postgresql", migrated=True)).path[1:]
    with pooler(pgbouncer, postgres.url) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        async with StorageManager({"sql": {"url": url, "pooler": told}}) as manager:
            await manager.ensure_schemas()
            assert manager.executor.options.transaction_pooling  # type: ignore[attr-defined]
            await manager.conversations.create_conversation("c")
            await manager.conversations.add_message("c", "user", "hello", message_id="m")
            await asyncio.gather(*(_work(manager, n) for n in range(30)))
            assert await manager.kv.get("ns", "units") == 30
            conversation = await manager.conversations.get_conversation("c")
            assert conversation is not None
            assert conversation.last_sequence == 61
            await seed_tasks(manager)
            made = 0
            for method, call in store_calls(manager):
                try:
                    await call()
                except (NotFoundError, JobLeaseLostError):
                    pass  # what an earlier method of the list deleted, or was never there
                except Exception as exc:
                    raise AssertionError(f"{method} through the pooler: {exc!r}") from exc
                made += 1
            assert made >= 30
            assert (await manager.health_check()).to_dict()


async def _work(manager: StorageManager, n: int) -> None:
    for k in range(5):
        await manager.kv.set("ns", f"{n}-{k}", k)
        assert await manager.kv.get("ns", f"{n}-{k}") == k
    await manager.conversations.add_message("c", "user", f"one {n}")
    async with manager.unit_of_work() as uow:
        await uow.conversations.add_message("c", "assistant", f"two {n}")
        await uow.kv.increment("ns", "units")


# --- wake-ups: LISTEN has no session to live in behind a transaction pooler -------------------------------------------


@pytest.mark.parametrize("told", ["auto", "transaction"])
async def test_wake_ups_fall_back_to_looking(
    pgbouncer: str, postgres: Any, databases: Any, leaks: Any, told: str
) -> None:
    name = urlsplit(databases.url("postgresql", migrated=True)).path[1:]
    direct = {"sql": {"url": postgres.url_of(name, tcp=True)}}
    with pooler(pgbouncer, postgres.url) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        async with StorageManager({"sql": {"url": url, "pooler": told}}) as manager:
            async with manager.wakeups.subscribe("jobs:default") as subscription:
                manager.wakeups.notify("jobs:default")
                assert await subscription.wait(20.0) == {"jobs:default"}  # within the process it works
                assert manager.wakeups.poll_s == 1.0
            await _a_worker_finds_what_another_process_enqueued(manager, direct)
            listening = "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            listening += " AND datname = current_database()"
            assert await manager.sql_backend.execute_sql(listening) == [{"n": 0}]


async def _a_worker_finds_what_another_process_enqueued(manager: StorageManager, direct: Any) -> None:
    bench = Bench(manager)

    @bench.handler("h")
    async def h(job: Any) -> str:
        return "seen"

    async with bench.worker(poll_s=None), StorageManager(direct) as other:
        await bench.until(await other.jobs.enqueue("h"), "succeeded")
        # idle by now, so this one is found by looking
        await bench.until(await other.jobs.enqueue("h"), "succeeded")
