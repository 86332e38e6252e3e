"""Synchronous repositories: the same operations under the same names, for code without an event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from typing import Any, Callable, List

import pytest

from modules.conversation_store.repository import ConversationStore
from modules.storage.adapters import (
    DomainStoreFactory,
    SyncBridge,
    SyncRepository,
    bridge,
    create_conversation_repository,
    create_job_repository,
    create_kv_store,
    create_task_repository,
)
from modules.store_common.deadlines import deadline, deadline_after
from modules.store_common.errors import (
    StorageError,
    TenantContextError,
)
from modules.store_common.tenancy import tenant_context


class Probe:
    """A store that says what it sees of its caller's context."""

    async def seconds_left(self) -> float:
        return deadline_after(100.0) - time.monotonic()


@pytest.fixture(autouse=True)
def _bridge_is_up() -> None:
    bridge().portal()  # the process's own, open until it ends: nothing that a test leaves behind


async def in_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


async def test_the_same_names(storage: Any) -> None:
    for store, repository in (
        (storage.conversations, create_conversation_repository(storage)),
        (storage.kv, create_kv_store(storage)),
    ):
        names = {name for name in dir(store) if not name.startswith("_")}
        assert names <= set(dir(repository))
        for name in names:
            member = getattr(store, name)
            if callable(member):
                assert inspect.signature(getattr(repository, name)) == inspect.signature(member)
                assert getattr(repository, name).__doc__ == member.__doc__
    assert repr(create_kv_store(storage)) == "SyncRepository(KeyValueStore)"
    with pytest.raises(AttributeError):
        _ = create_kv_store(storage).nothing_like_it


async def test_the_factory(storage: Any) -> None:
    factory = storage.get_domain_store_factory()
    assert isinstance(factory, DomainStoreFactory)
    assert isinstance(factory.conversation_repository(), SyncRepository)
    assert isinstance(factory.kv_store(), SyncRepository)
    assert isinstance(factory.task_repository(), SyncRepository)
    assert isinstance(factory.job_repository(), SyncRepository)


async def test_tasks_and_jobs_for_synchronous_code(storage: Any) -> None:
    def work() -> Any:
        task = create_task_repository(storage).create_task("Book the hotel")
        return task, create_job_repository(storage).enqueue("mail.send", {"to": "ada"})

    task, job = await in_thread(work)

    assert (await storage.tasks.get_task(task.id)) == task
    assert (await storage.jobs.require(job)).handler == "mail.send"


async def test_operations_and_iterators(storage: Any) -> None:
    def work() -> Any:
        conversations = create_conversation_repository(storage)
        conversations.create_conversation(conversation_id="c1", title="t")
        conversations.add_messages("c1", [{"role": "user", "content": str(n)} for n in range(7)])
        seen = [message.content for message in conversations.stream_messages("c1")]
        some = []
        for message in conversations.stream_messages("c1"):
            some.append(message.content)
            if len(some) == 2:
                break
        recent = conversations.load_recent_messages("c1", limit=3)
        kv = create_kv_store(storage)
        kv.set("n", "k", 1)
        return seen, some, [message.content for message in recent], kv.increment("n", "k")

    seen, some, recent, number = await in_thread(work)
    assert seen == [str(n) for n in range(7)]
    assert some == ["0", "1"]
    assert recent == ["4", "5", "6"]
    assert int(getattr(number, "value", number)) == 2


@pytest.mark.skipif(not hasattr(ConversationStore, "turn"), reason="turns are not built yet")
async def test_a_context_manager(storage: Any) -> None:
    def work() -> None:
        conversations = create_conversation_repository(storage)
        conversations.create_conversation(conversation_id="c1")
        with conversations.turn("c1", user_message="hello") as turn:
            turn.write("par")
            turn.write("tial")
        with pytest.raises(ZeroDivisionError), conversations.turn("c1", user_message="again") as turn:
            turn.write("half")
            _ = 1 / 0

    await in_thread(work)
    contents = [m.content for m in await storage.conversations.load_recent_messages("c1", limit=10)]
    assert contents[:2] == ["hello", "partial"]
    assert "again" in contents


async def test_errors_are_carried_over(storage: Any) -> None:
    def work() -> None:
        conversations = create_conversation_repository(storage)
        with pytest.raises(LookupError):
            conversations.add_message("none", role="user", content="x")
        with pytest.raises(ValueError, match="finite"):
            create_kv_store(storage).set("n", "k", float("nan"))
        with pytest.raises(TypeError):
            create_kv_store(storage).set("n")

    await in_thread(work)


async def test_the_tenant_and_the_deadline_of_the_calling_context_hold(storage: Any) -> None:
    def work() -> None:
        kv = create_kv_store(storage)
        with tenant_context("acme"):
            kv.set("n", "k", "of acme")
        assert kv.get("n", "k") is None
        assert kv.get("n", "k", tenant_id="acme") == "of acme"
        with tenant_context("acme"):
            assert kv.get("n", "k") == "of acme"
        conversations = create_conversation_repository(storage)
        with tenant_context("acme"):
            conversations.create_conversation(conversation_id="c1")
            conversations.add_message("c1", role="user", content="x")
            assert [m.content for m in conversations.stream_messages("c1")] == ["x"]
        with deadline(1.0):
            assert SyncRepository(Probe()).seconds_left() <= 1.0

    await in_thread(work)


async def test_a_required_tenant_is_required_here_too(migrated_settings: Any) -> None:
    from modules.storage.manager import StorageManager

    async with StorageManager(migrated_settings.merged_with({"require_tenant_context": True})) as manager:

        def work() -> None:
            with pytest.raises(TenantContextError):
                create_kv_store(manager).get("n", "k")
            with tenant_context("acme"):
                assert create_kv_store(manager).get("n", "k") is None

        await in_thread(work)


async def test_refused_on_an_event_loop(storage: Any) -> None:
    kv = create_kv_store(storage)
    with pytest.raises(StorageError, match="event loop"):
        kv.get("n", "k")
    with pytest.raises(StorageError, match="event loop"):
        next(iter(create_conversation_repository(storage).stream_messages("c1")))


async def test_many_threads_at_once(storage: Any) -> None:
    kv = create_kv_store(storage)
    errors: List[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                kv.increment("n", "counter")
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    await in_thread(lambda: [thread.join(60) for thread in threads])
    assert errors == []
    assert await storage.kv.get("n", "counter") == 80


async def test_a_bridge_of_ones_own_starts_late_and_closes_twice() -> None:
    threads = set(threading.enumerate())
    own = SyncBridge()
    assert set(threading.enumerate()) == threads, "constructing starts nothing"

    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    def work() -> None:
        assert own.call(add, 1, 2) == 3
        own.close()
        own.close()
        assert own.call(add, 3, 4) == 7
        own.close()

    await in_thread(work)
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("atlas")]
