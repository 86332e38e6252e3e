"""Reconciliation: what differs is found and mended, in pages, and taken up again where it broke off."""

from __future__ import annotations

from typing import Any, List

import pytest

from modules.storage import reconciliation
from modules.storage.operations import Transaction, write
from modules.storage.outbox_queue import OutboxEntry, claim, stage
from modules.storage.reconciliation import Difference, Reconciliation, Report
from modules.storage.vectors.base import VectorDocument
from modules.store_common.errors import NotConfiguredError, UnavailableError

pytestmark = pytest.mark.background


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "_PAGE", 4)


@pytest.fixture
async def filled(storage: Any) -> Any:
    provider = storage.add_vector_store("in_memory", default=True)
    await provider.create_collection("docs", 2)
    async with storage.unit_of_work() as uow:
        for space in ("one", "two"):
            documents = [VectorDocument(f"d{n:02}", [1.0, n], f"text {n}", {"n": n}) for n in range(10)]
            await uow.vectors.upsert("docs", documents, namespace=space)
        await uow.vectors.delete("docs", ["d03"], namespace="one")
    await uow.applied(60)
    return storage


def _run(storage: Any, found: List[Difference], **how: Any) -> Reconciliation:
    target = storage.outbox.targets.require("in_memory")
    return Reconciliation(storage.executor, target, on_difference=found.append, **how)


async def test_nothing_differs(filled: Any) -> None:
    report = await _run(filled, []).run()
    assert report == Report(compared=20, equal=20, done=True)
    assert await _run(filled, []).count() == 20


async def _harm(storage: Any) -> None:
    vectors = storage.vectors
    await vectors.delete("docs", ["d01", "d02"], namespace="one")
    await vectors.upsert("docs", [VectorDocument("d05", [9.0, 9.0])], namespace="one")
    await vectors.upsert("docs", [VectorDocument("d03", [1.0, 3.0])], namespace="one")
    await vectors.upsert("docs", [VectorDocument("stranger", [1.0, 3.0])], namespace="two")


async def test_each_kind_of_difference_is_found_and_repaired(filled: Any) -> None:
    await _harm(filled)
    found: List[Difference] = []
    report = await _run(filled, found).run()
    assert sorted((d.kind, d.key[3], d.key[4]) for d in found) == [
        ("extra", "two", "stranger"),
        ("missing", "one", "d01"),
        ("missing", "one", "d02"),
        ("stale", "one", "d05"),
        ("undead", "one", "d03"),
    ]
    assert (report.missing, report.stale, report.undead, report.extra, report.repaired) == (2, 1, 1, 1, 0)

    assert (await _run(filled, [], repair=True).run()).repaired == 4
    await filled.outbox.drain(60)
    report = await _run(filled, []).run()
    assert (report.equal, report.differences, report.extra) == (20, 1, 1), (
        "what is not ours is not deleted unasked"
    )

    assert (await _run(filled, [], repair=True, prune=True).run()).repaired == 1
    await filled.outbox.drain(60)
    assert (await _run(filled, []).run()).differences == 0
    assert await filled.vectors.get("docs", ["stranger"], namespace="two") == []


async def test_a_target_that_lost_everything_is_rebuilt(filled: Any) -> None:
    await filled.vectors.delete_collection("docs")
    assert (await _run(filled, [], repair=True).run()).missing == 19
    await filled.outbox.drain(60)
    assert (await _run(filled, []).run()).equal == 20
    assert await filled.vectors.count("docs") == 19


async def test_a_run_that_broke_off_is_taken_up_again(filled: Any) -> None:
    await _harm(filled)
    whole = await _run(filled, []).run()
    for attempt in range(40):
        found: List[Difference] = []
        run = _run(filled, found)
        steps: List[int] = []

        def fail_after_a_page(report: Report, steps: List[int] = steps) -> None:
            steps.append(report.compared)
            if len(steps) == 2:
                raise UnavailableError("broke off")

        run.on_progress(fail_after_a_page)
        try:
            report = await run.run()
        except UnavailableError:
            continue
        assert attempt >= 2
        assert report == whole
        return
    pytest.fail("it never came to its end")


@write
async def _hold(tx: Transaction, name: str) -> None:
    await stage(tx, "default", "in_memory", "docs", name)
    assert await claim(tx, "in_memory", "held by a test", 10, 3600.0)


async def test_what_is_under_way_is_left_out(filled: Any) -> None:
    await _harm(filled)
    await filled.executor.run(_hold, "one/d01")
    report = await _run(filled, []).run()
    assert (report.missing, report.pending) == (1, 1)


async def test_a_plain_target_cannot_be_compared(storage: Any) -> None:
    async def apply(entry: OutboxEntry) -> None:
        raise AssertionError("never called")

    storage.register_target("plain", apply)
    with pytest.raises(NotConfiguredError, match="plain"):
        Reconciliation(storage.executor, storage.outbox.targets.require("plain"))
