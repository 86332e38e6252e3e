"""Imports one file into a new database and says how long it took and how much memory it used. Run by `importing`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path


async def _import(source: Path, database: Path) -> None:
    from modules.storage import StorageManager
    from modules.storage.transfer import import_file

    async with StorageManager({"sql": {"path": str(database)}}) as storage:
        started = time.perf_counter()
        report = await import_file(storage, source)
        seconds = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"messages": report.messages_added, "seconds": seconds, "peak_mb": peak_kib / 1024}))


if __name__ == "__main__":
    asyncio.run(_import(Path(sys.argv[1]), Path(sys.argv[2])))
