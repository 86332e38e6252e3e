"""How many queues a worker may have."""

from __future__ import annotations

from typing import Any

import pytest

from modules.orchestration import JobContext
from modules.store_common.errors import InvalidValueError
from tests.support.worker import Bench

_MOST = [f"q{number}" for number in range(1000)]


async def test_a_worker_serves_a_thousand_queues(storage: Any) -> None:
    bench = Bench(storage)

    @bench.handler("h")
    async def h(job: JobContext) -> Any:
        return job.queue

    job = await bench.jobs.enqueue("h", queue=_MOST[-1])
    await bench.work_off(queues=_MOST)
    assert (await bench.runs(job))[0].result == "q999"


async def test_more_are_refused(storage: Any) -> None:
    with pytest.raises(InvalidValueError, match="queues"):
        Bench(storage).worker(queues=[*_MOST, "one more"])
