"""The outbox as a queue: claims by state, order per key, leases and fences, parking, subscribers."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from modules.storage.operations import Transaction, write
from modules.storage.outbox_queue import (
    MAX_ATTEMPTS,
    NEVER,
    OutboxEntry,
    SubscriberQueue,
    again,
    announce,
    claim,
    fail,
    finish,
    finish_and_remove,
    release,
    stage,
)


@pytest.fixture
def run(storage: Any) -> Any:
    return storage.executor.run


async def _claim(run: Any, limit: int = 100, lease_s: float = 30.0, token: str = "me") -> List[OutboxEntry]:
    found: List[OutboxEntry] = await run(claim, "t", token, limit, lease_s)
    return found


async def test_changes_of_a_key_coalesce_and_the_last_payload_counts(run: Any) -> None:
    first = await run(stage, "a", "t", "doc", "k", '"one"')
    second = await run(stage, "a", "t", "doc", "k", '"two"')
    await run(stage, "b", "t", "doc", "k")

    found = await _claim(run)

    assert second > first > 0
    assert {(e.tenant_id, e.key, e.payload) for e in found} == {("a", "k", '"two"'), ("b", "k", None)}
    assert [e.version for e in found if e.tenant_id == "a"] == [second]
    assert await _claim(run) == [], "claimed keys are nobody else's"


async def test_the_longest_dirty_come_first_and_the_limit_holds(run: Any) -> None:
    for key in ("c", "a", "b"):
        await run(stage, "x", "t", "doc", key)
        await asyncio.sleep(0.002)  # the clock of SQLite has steps of 1 ms

    assert [e.key for e in await _claim(run, limit=2)] == ["c", "a"]
    assert [e.key for e in await _claim(run, limit=2)] == ["b"]


async def test_a_key_that_changes_while_it_is_worked_on_stays_dirty(run: Any) -> None:
    await run(stage, "x", "t", "doc", "k")
    first = await _claim(run)
    newer = await run(stage, "x", "t", "doc", "k")
    assert await _claim(run) == [], "in one pair of hands at a time"

    assert await run(finish, first) == []
    second = await _claim(run)

    assert [(e.version, e.applied, e.attempts) for e in second] == [(newer, first[0].version, 0)]
    assert await run(finish, second) == []
    assert await _claim(run) == []


async def test_versions_go_on_after_a_key_was_done(run: Any) -> None:
    first = await run(stage, "x", "t", "doc", "k")
    await run(finish, await _claim(run))
    assert await run(stage, "x", "t", "doc", "k") > first
    assert len(await _claim(run)) == 1


async def test_a_lease_that_ended_is_taken_over_and_its_owner_is_told(run: Any) -> None:
    await run(stage, "x", "t", "doc", "k")
    slow = await _claim(run, lease_s=0.0, token="slow")
    other = await _claim(run, token="other")

    assert [e.fence for e in other] == [slow[0].fence + 1]
    assert await run(finish, slow) == slow, "the lease was lost"
    await run(again, slow)
    assert await run(finish, other) == []
    third = await _claim(run)
    assert [e.key for e in third] == ["k"], "what the slow one wrote may be old: dirty once more"
    assert third[0].version > other[0].version


async def test_what_is_done_leaves_at_once_where_that_is_wanted(storage: Any, run: Any) -> None:
    for key in ("gone", "changed", "new"):
        await run(stage, "x", "t", "doc", key)
    mine = [entry for entry in await _claim(run) if entry.key != "new"]
    newer = await run(stage, "x", "t", "doc", "changed")
    assert await run(finish_and_remove, mine) == 1
    assert await run(finish_and_remove, []) == 0
    assert await storage.outbox.get(("x", "t", "doc", "gone")) is None
    left = await storage.outbox.get(("x", "t", "doc", "changed"))
    assert (left.state, left.version, left.claimed_by) == ("pending", newer, None)
    assert [entry.key for entry in await _claim(run)] == ["changed"], "the third one is still held"


@pytest.mark.parametrize("is_done", [True, False], ids=["and it was done", "and it is held"])
async def test_a_row_that_is_gone_comes_back_for_who_was_overtaken(run: Any, is_done: bool) -> None:
    await run(stage, "x", "t", "doc", "k")
    slow = await _claim(run, lease_s=0.0, token="slow")
    other = await _claim(run, token="other")
    if is_done:
        assert await run(finish_and_remove, other) == 1
    assert await run(finish_and_remove, slow) == 0
    if not is_done:
        assert await run(finish_and_remove, other) == 0
    assert [entry.key for entry in await _claim(run)] == ["k"], "what the slow one wrote may be old"


async def test_a_failure_that_parks_nothing_has_the_pause_of_its_caller(storage: Any, run: Any) -> None:
    await run(stage, "x", "t", "doc", "k")
    seen: List[int] = []

    def pause(failures: int) -> float:
        seen.append(failures)
        return 0.0 if failures <= MAX_ATTEMPTS else 3600.0

    for _ in range(MAX_ATTEMPTS + 1):
        await run(fail, [((await _claim(run))[0], "no")], NEVER, pause)
    assert seen == list(range(1, MAX_ATTEMPTS + 2))
    assert await _claim(run) == []
    found = await storage.outbox.get(("x", "t", "doc", "k"))
    assert (found.state, found.attempts, found.error) == ("pending", MAX_ATTEMPTS + 1, "no")


async def test_a_failure_waits_and_the_last_one_parks(run: Any) -> None:
    await run(stage, "x", "t", "doc", "bad")
    for attempt in range(MAX_ATTEMPTS):
        claimed = await _claim(run)
        if attempt:
            # full jitter may give a pause of nearly nothing; the row is pulled forward below in any case
            claimed = claimed or await _pull_forward(run)
        assert [(e.key, e.attempts, e.fence) for e in claimed] == [("bad", attempt, attempt + 1)]
        await run(fail, [(claimed[0], f"reason {attempt}")], MAX_ATTEMPTS)
    await run(stage, "x", "t", "doc", "good")
    newer = await run(stage, "x", "t", "doc", "bad")

    assert [e.key for e in await _claim(run)] == ["good"], "later changes wait behind the parked key"
    assert newer > 0


@write
async def _now(tx: Transaction) -> None:
    from sqlalchemy import text

    from modules.storage.statements import Statement

    await tx.run(Statement(text("UPDATE atlas_outbox SET available_at = staged_at WHERE state = 'pending'")))


async def _pull_forward(run: Any) -> List[OutboxEntry]:
    await run(_now)
    return await _claim(run)


async def test_a_claim_given_back_is_free_at_once(run: Any) -> None:
    await run(stage, "x", "t", "doc", "k")
    await run(release, await _claim(run))
    assert [(e.key, e.attempts) for e in await _claim(run)] == [("k", 0)]


async def test_nothing_is_staged_by_a_unit_that_is_undone(storage: Any, run: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "k", 1)
            await uow.kv._executor.run(stage, "x", "t", "doc", "k")
            _ = 1 / 0
    assert await _claim(run) == []


async def test_two_relays_never_hold_one_key(run: Any) -> None:
    for number in range(60):
        await run(stage, "x", "t", "doc", f"k{number}")

    async def take(token: str) -> List[str]:
        keys: List[str] = []
        while True:
            found = await _claim(run, limit=5, token=token)
            if not found:
                return keys
            keys += [entry.key for entry in found]
            assert await run(finish, found) == []

    taken = await asyncio.gather(*(take(f"relay{n}") for n in range(4)))
    keys = [key for part in taken for key in part]
    assert sorted(keys) == sorted(f"k{number}" for number in range(60))


# --- subscribers -----------------------------------------------------------------------------------------------------


async def test_every_subscriber_gets_the_range_of_changes_of_a_key(storage: Any, run: Any) -> None:
    assert await run(announce, "tasks", "x", "t1", version=1) == 0, "nobody has subscribed"
    one, two = (SubscriberQueue(storage.executor, "tasks", name) for name in ("one", "two"))
    assert await one.subscribe()
    assert not await one.subscribe()
    assert await run(announce, "tasks", "x", "t1", version=2) == 1
    await two.subscribe()
    for version in (3, 4):
        assert await run(announce, "tasks", "x", "t1", version=version) == 2

    first, second = await one.claim(), await two.claim()

    assert [(e.kind, e.key, e.applied, e.version) for e in first] == [("tasks", "t1", 1, 4)]
    assert [(e.applied, e.version) for e in second] == [(2, 4)]
    assert await one.finish_up_to(first[0], 3) == []
    assert [(e.applied, e.version) for e in await one.claim()] == [(3, 4)]


async def test_after_a_key_was_done_the_next_change_comes_alone(storage: Any, run: Any) -> None:
    queue = SubscriberQueue(storage.executor, "tasks", "one")
    await queue.subscribe()
    await run(announce, "tasks", "x", "t1", version=7)
    await queue.finish(await queue.claim())
    await run(announce, "tasks", "x", "t1", version=8)
    assert [(e.applied, e.version) for e in await queue.claim()] == [(7, 8)]


async def test_who_unsubscribes_is_told_nothing_more(storage: Any, run: Any) -> None:
    queue = SubscriberQueue(storage.executor, "tasks", "one")
    await queue.subscribe()
    await run(announce, "tasks", "x", "t1", version=1)
    assert await queue.unsubscribe()
    assert await queue.claim() == []
    assert await run(announce, "tasks", "x", "t1", version=2) == 0
    assert not await queue.unsubscribe()
