"""Makes many short-lived children that write through the manager, each to meet a disk error at another system call.

    strace -f -e trace=CALL -e inject=CALL:error=ENOSPC:when=N+ python -m tests.faults.disk_child URL CALL

As in `zygote`: children are forks, and one that burns K calls in the writer thread first meets the error at the (N - K)-th
call of its own work. Each line "RUN K" on standard input is one child; it prints its outcomes as one line of JSON:

    {"a-RUN-1": "ok", "k-RUN-1": "StorageFullError", ...}    a message, a key; "u-" is a unit of work of one of each

and under "closed" whether shutting down raised.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from typing import Any, Awaitable, Dict

from modules.storage.manager import StorageManager
from modules.storage.operations import Transaction, write


@write(atomic=False)
async def _burn(tx: Transaction, file: int, call: str, count: int) -> None:
    for _ in range(count):
        try:
            if call == "pwrite64":
                os.pwrite(file, b"x", 0)
            else:
                os.fdatasync(file)
        except OSError:
            # the error is injected here already when more calls are burnt than the work of a child takes
            return


class _Writer:
    """Writes one of each kind and notes how it ended."""

    def __init__(self, manager: StorageManager, run: str) -> None:
        self._manager = manager
        self._run = run
        self.outcomes: Dict[str, str] = {}

    async def append(self, n: int) -> None:
        name = f"a-{self._run}-{n}"
        await self._note(name, self._manager.conversations.add_message("c", "user", n, message_id=name))

    async def put(self, n: int) -> None:
        name = f"k-{self._run}-{n}"
        await self._note(name, self._manager.kv.set("disk", name, n))

    async def unit(self, n: int) -> None:
        name = f"u-{self._run}-{n}"
        await self._note(name, self._unit(name))

    async def _unit(self, name: str) -> None:
        async with self._manager.unit_of_work() as uow:
            await uow.conversations.add_message("c", "user", name, message_id=name)
            await uow.kv.set("disk", name, name)

    async def _note(self, name: str, call: Awaitable[Any]) -> None:
        try:
            await call
        except Exception as exc:
            self.outcomes[name] = type(exc).__name__
        else:
            self.outcomes[name] = "ok"


async def _work(url: str, call: str, run: str, burn: int) -> Dict[str, str]:
    manager = StorageManager({"sql": {"url": url, "auto_migrate": False}})
    async with manager:
        file = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        # outside a transaction: a burnt call must not be one of SQLite's
        await manager.executor.call_bare(lambda connection: _drive(_burn(None, file, call, burn)))  # type: ignore[arg-type, union-attr]
        os.close(file)
        writer = _Writer(manager, run)
        for n in (1, 2, 3):
            await writer.append(n)
            await writer.put(n)
            await writer.unit(n)
            # one batch of the writer: who shares a transaction shares its fate
            await asyncio.gather(*[writer.append(n * 10 + m) for m in range(3)], writer.put(n * 10))
    return writer.outcomes


def _drive(coroutine: Any) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return


async def _prepare(url: str) -> None:
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
        await manager.conversations.ensure_conversation("c")
        async with manager.unit_of_work() as uow:
            await uow.kv.set("warm", "up", 1)


def main() -> None:
    url, call = sys.argv[1:3]
    asyncio.run(_prepare(url))
    print("ready", flush=True)
    for line in sys.stdin:
        run, burn = line.split()
        child = os.fork()
        if child == 0:
            try:
                print(json.dumps(asyncio.run(_work(url, call, run, int(burn)))), flush=True)
            except BaseException:
                traceback.print_exc()
                print(json.dumps({"died": "yes"}), flush=True)
                os._exit(1)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
