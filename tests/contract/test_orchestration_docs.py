"""The examples of docs/orchestration.md run."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, List

import pytest

from modules.job_store.records import NewJob
from modules.orchestration import HandlerRegistry, Worker
from modules.storage.manager import StorageManager

PAGE = Path(__file__).resolve().parents[2] / "docs" / "orchestration.md"


def blocks() -> List[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(text: str, **names: Any) -> types.ModuleType:
    made = types.ModuleType("docs_orchestration")
    made.__dict__.update(names)
    exec(compile(text, str(PAGE), "exec"), made.__dict__)
    return made


def test_the_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(blocks()[0])
    assert capsys.readouterr().out == "succeeded hello world\n"


async def test_the_idempotent_handlers_have_their_effect_once() -> None:
    class Payments:
        def __init__(self) -> None:
            self.seen: List[str] = []

        async def charge(self, amount: int, *, idempotency_key: str) -> str:
            self.seen.append(idempotency_key)
            return "charged"

    payments = Payments()
    page = run(blocks()[1], payments=payments)
    handlers = HandlerRegistry()
    handlers.add("charge", page.charge)
    handlers.add("count", page.count)
    async with StorageManager({"sql": {"url": "sqlite:///:memory:"}}) as storage:
        charge = await storage.jobs.enqueue("charge", {"amount": 3})
        count = await storage.jobs.enqueue("count", {"amount": 3})
        await Worker(storage, handlers).run_until_idle()
        for job_id in (charge, count):
            await storage.jobs.rerun(job_id)
        await Worker(storage, handlers).run_until_idle()

        assert payments.seen == [charge, charge]
        assert await storage.kv.get("totals", "orders") == 3


async def test_the_schedule_is_made() -> None:
    page = run(blocks()[2])
    async with StorageManager({"sql": {"url": "sqlite:///:memory:"}}) as storage:
        await page.nightly(storage)
        schedule = await storage.jobs.get_schedule_by_name("report")

    assert schedule is not None
    assert schedule.job == NewJob("report.build")
    assert schedule.next_at is not None


def test_every_block_is_looked_at() -> None:
    assert len(blocks()) == 3
