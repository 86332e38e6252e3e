"""Imports one file into a new database and says how long it took and how much memory it used. Run by `importing`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path


def _peak_mb() -> float:
    """Return the largest resident size of this process so far.

    From /proc where there is one: what `getrusage` says begins at the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def _import(source: Path, database: Path) -> None:
    from modules.storage import StorageManager
    from modules.storage.transfer import import_file

    async with StorageManager({"sql": {"path": str(database)}}) as storage:
        started = time.perf_counter()
        report = await import_file(storage, source)
        seconds = time.perf_counter() - started
    print(json.dumps({"messages": report.messages_added, "seconds": seconds, "peak_mb": _peak_mb()}))


if __name__ == "__main__":
    asyncio.run(_import(Path(sys.argv[1]), Path(sys.argv[2])))
