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
