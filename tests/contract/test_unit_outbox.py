"""What a unit of work stages for other stores: nothing before COMMIT, everything after it, and told when it is there."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List, Tuple

import pytest

from modules.storage.outbox_queue import OutboxEntry
from modules.storage.unit_of_work import UnitOfWorkError, UnitOfWorkState
from modules.storage.vectors.base import VectorDocument
from modules.store_common.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    IdempotencyConflictError,
    UnavailableError,
)
from tests.support.leaks import wait_until

pytestmark = pytest.mark.background


class Book:
    """A target in memory: the newest payload of each key, and every delivery."""

    def __init__(self) -> None:
        self.pages: Dict[Tuple[str, str], Any] = {}
        self.deliveries: List[Tuple[str, int]] = []
        self.broken = False

    async def apply(self, entry: OutboxEntry) -> None:
        if self.broken:
            raise ConnectionError("away, and this text may hold a secret")
        self.pages[entry.tenant_id, entry.key] = entry.payload
        self.deliveries.append((entry.key, entry.version))


@pytest.fixture
def book(storage: Any) -> Book:
    made = Book()
    storage.register_target("book", made.apply)
    return made


async def test_what_was_staged_is_applied_after_commit(storage: Any, book: Book) -> None:
    async with storage.unit_of_work() as uow:
        await uow.kv.set("n", "k", 1)
        uow.stage("book", "page", "one", {"text": "hello"})
        assert book.deliveries == []
        with pytest.raises(UnitOfWorkError):
            await uow.applied(1)
    await uow.applied(60)

    assert book.pages == {("default", "one"): '{"text":"hello"}'}
    assert (await storage.outbox.stats()).pending == 0
    # counted when the relay hears that it is written down, which others may see before
    await wait_until(lambda: storage.outbox.counters.total("applied") == 1, 60)


@pytest.mark.parametrize("ending", ["error", "rollback"])
async def test_what_was_staged_vanishes_with_the_unit(storage: Any, book: Book, ending: str) -> None:
    try:
        async with storage.unit_of_work() as uow:
            uow.stage("book", "page", "one", 1)
            if ending == "rollback":
                await uow.rollback()
            else:
                raise LookupError
    except LookupError:
        pass
    async with storage.unit_of_work() as other:
        other.stage("book", "page", "two", 2)
    await other.applied(60)

    assert list(book.pages) == [("default", "two")]
    with pytest.raises(UnitOfWorkError, match="rolled_back"):
        await uow.applied(1)


async def test_a_target_that_is_away_is_tried_again(storage: Any, book: Book) -> None:
    book.broken = True
    async with storage.unit_of_work() as uow:
        uow.stage("book", "page", "one", 1)
    with pytest.raises(DeadlineExceededError, match="stay in the outbox"):
        await uow.applied(0.2)
    await wait_until(lambda: storage.outbox.counters.total("failed"), 60)
    record = await storage.outbox.get(("default", "book", "page", "one"))
    assert record is not None
    assert record.error == "ConnectionError", "nothing of a foreign message is kept"
    book.broken = False
    await uow.applied(60)
    assert book.pages == {("default", "one"): "1"}


async def test_a_target_that_is_away_for_long_parks_nothing(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with a key parks it; that its target cannot be reached is not wrong with the key."""
    monkeypatch.setattr("modules.storage.outbox_queue._BASE_S", 0.001)
    monkeypatch.setattr("modules.storage.outbox_queue._CAP_S", 0.02)
    tried: List[int] = []

    async def apply(entry: OutboxEntry) -> None:
        tried.append(entry.attempts)
        if len(tried) <= 12:
            raise UnavailableError("the other store does not answer")

    storage.register_target("far", apply)
    async with storage.unit_of_work() as uow:
        uow.stage("far", "page", "one", 1)
    await uow.applied(60)
    assert tried == list(range(13))
    assert storage.outbox.counters.total("parked") == 0


async def test_targets_have_names_of_their_own(storage: Any, book: Book) -> None:
    with pytest.raises(AlreadyExistsError):
        storage.register_target("book", book.apply)


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_one_effect_and_one_answer(storage: Any, book: Book) -> None:
    seen = []
    for number in range(3):
        async with storage.unit_of_work("order-7", body={"item": "tea"}) as uow:
            await uow.kv.increment("n", "orders")
            uow.stage("book", "page", "order", number)
            uow.set_result({"number": number})
            seen.append(number)
        assert uow.result == {"number": 0}
        assert uow.replayed == (number > 0)
        assert uow.state is UnitOfWorkState.COMMITTED
        await uow.applied(60)

    assert seen == [0], "the block of a unit that was done before ends at its first operation"
    assert await storage.kv.get("n", "orders") == 1
    assert book.pages == {("default", "order"): "0"}


async def test_a_key_with_another_body_is_a_conflict(storage: Any) -> None:
    async with storage.unit_of_work("k", body={"a": 1}) as uow:
        await uow.kv.set("n", "k", 1)
    with pytest.raises(IdempotencyConflictError):
        async with storage.unit_of_work("k", body={"a": 2}):
            pytest.fail("it must not be entered")
    async with storage.unit_of_work("k", body={"a": 2}, tenant_id="other") as other:
        await other.kv.set("n", "k", 2, tenant_id="other")
    assert not other.replayed, "keys belong to a tenant"
    assert await storage.kv.get("n", "k") == 1


async def test_a_key_whose_unit_was_undone_is_free(storage: Any) -> None:
    with pytest.raises(LookupError):
        async with storage.unit_of_work("k") as uow:
            await uow.kv.set("n", "k", 1)
            raise LookupError
    assert not (await storage.resolve("k")).applied
    async with storage.unit_of_work("k") as uow:
        await uow.kv.set("n", "k", 2)
        uow.set_result("done")
    outcome = await storage.resolve("k")
    assert (outcome.applied, outcome.result) == (True, "done")
    assert await storage.kv.get("n", "k") == 2


async def test_resolve_waits_for_a_unit_that_is_under_way(storage: Any) -> None:
    inside, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with storage.unit_of_work("slow") as uow:
            await uow.kv.set("n", "k", 1)
            inside.set()
            await go.wait()

    task = asyncio.ensure_future(work())
    await asyncio.wait_for(inside.wait(), 60)
    asking = asyncio.ensure_future(storage.resolve("slow"))
    done, _ = await asyncio.wait({asking}, timeout=0.1)
    assert not done
    go.set()
    await task
    assert (await asking).applied


# --- vectors of another store ------------------------------------------------------------------------------------------


@pytest.fixture
async def remote(storage: Any) -> Any:
    provider = storage.add_vector_store("in_memory", default=True)
    await provider.create_collection("docs", 2)
    return storage


async def test_vectors_of_another_store_are_staged(remote: Any) -> None:
    async with remote.unit_of_work() as uow:
        await uow.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0], "text", {"n": 1})])
        await uow.vectors.delete("docs", ["b"])
        inside = await uow.vectors.get("docs", ["a"])
        assert [(d.id, d.content, dict(d.metadata)) for d in inside] == [("a", "text", {"n": 1})]
        assert await remote.vectors.count("docs") == 0, "nothing is sent before COMMIT"
        found = await uow.vectors.search("docs", [1.0, 0.0])
        assert not found.complete
    await uow.applied(60)

    (stored,) = await remote.vectors.get("docs", ["a"])
    assert (stored.content, dict(stored.metadata), list(stored.vector)) == ("text", {"n": 1}, [1.0, 0.0])
    assert stored.created_at is not None


async def test_a_later_delete_wins_and_stays(remote: Any) -> None:
    async with remote.unit_of_work() as uow:
        await uow.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0]), VectorDocument("b", [0.0, 1.0])])
    async with remote.unit_of_work() as later:
        assert await later.vectors.delete("docs", ["a", "nobody"]) == 1
        assert await later.vectors.get("docs", ["a"]) == []
    await later.applied(60)
    await uow.applied(60)

    assert [d.id for d in await remote.vectors.get("docs", ["a", "b"])] == ["b"]


async def test_a_collection_may_be_made_inside_a_unit(remote: Any) -> None:
    async with remote.unit_of_work() as uow:
        await uow.vectors.create_collection("new", 3, metadata={"why": "test"})
        await uow.vectors.upsert("new", [VectorDocument("a", [1.0, 0.0, 0.0])], namespace="x/y%")
    await uow.applied(60)

    assert dict((await remote.vectors.get_collection("new")).metadata) == {"why": "test"}
    assert len(await remote.vectors.get("new", ["a"], namespace="x/y%")) == 1


async def test_a_store_that_lost_its_collection_gets_it_back_with_the_next_document(remote: Any) -> None:
    async with remote.unit_of_work() as uow:
        await uow.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0])])
    await uow.applied(60)
    await remote.vectors.delete_collection("docs")
    async with remote.unit_of_work() as uow:
        await uow.vectors.upsert("docs", [VectorDocument("b", [1.0, 0.0])])
    await uow.applied(60)
    assert [d.id for d in await remote.vectors.get("docs", ["a", "b"])] == ["b"]
