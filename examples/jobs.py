"""A job that is enqueued, run by a worker, and kept with its result. Needs nothing but the package."""

from __future__ import annotations

import asyncio

from modules.orchestration import JobContext, Worker, handler
from modules.storage import StorageManager


@handler("mail.send")
async def send(job: JobContext) -> None:
    print("to", job.payload["to"], "attempt", job.attempt)


async def main() -> None:
    async with StorageManager() as storage:
        await storage.jobs.enqueue("mail.send", {"to": "ada@example.org"})
        await Worker(storage).run_until_idle()


if __name__ == "__main__":
    asyncio.run(main())
