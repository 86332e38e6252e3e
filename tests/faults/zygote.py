"""Makes many short-lived children that write through the manager, each to be killed at another system call.

    strace -f -e trace=CALL -e inject=CALL:signal=SIGKILL:when=N python -m tests.faults.zygote URL CALL ACKS [ROUNDS]

Importing costs most of a second, so it is done once here and each child is a fork. strace counts the calls of every thread
from its start and kills at the N-th. A child that is told to burn K calls first, in the thread that will write, is
therefore killed at the (N - K)-th call of its own work: each line "RUN K" on standard input is one child, and its wait
status is printed. Acknowledgements are appended to the file ACKS, one `write` each:

    a RUN-n   a message       k RUN-n   a key       u RUN-n   a unit of work that wrote one of each
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback

from modules.storage.manager import StorageManager
from modules.storage.operations import Transaction, write

_ROUNDS = 60


async def _burn(manager: StorageManager, call: str, count: int) -> None:
    if call == "sendto":
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(count):
                ours.send(b"x")
        return
    file = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    await manager.executor.run(_burn_in_writer, file, call, count)
    os.close(file)


@write
async def _burn_in_writer(tx: Transaction, file: int, call: str, count: int) -> None:
    for _ in range(count):
        if call == "pwrite64":
            os.pwrite(file, b"x", 0)
        else:
            os.fdatasync(file)


async def _write(url: str, call: str, run: str, burn: int, acks: int, rounds: int) -> None:
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
        await _burn(manager, call, burn)

        async def append(n: int) -> None:
            await manager.conversations.add_message("c", "user", n, message_id=f"a-{run}-{n}")
            os.write(acks, f"a {run}-{n}\n".encode())

        async def put(n: int) -> None:
            await manager.kv.set("kill", f"{run}-{n}", n)
            os.write(acks, f"k {run}-{n}\n".encode())

        async def unit(n: int) -> None:
            async with manager.unit_of_work() as uow:
                await uow.conversations.add_message("c", "user", n, message_id=f"u-{run}-{n}")
                await uow.kv.set("unit", f"{run}-{n}", n)
                await uow.tasks.create_task("t", task_id=f"u-{run}-{n}")
            os.write(acks, f"u {run}-{n}\n".encode())

        for n in range(1, rounds):
            await asyncio.gather(append(n), put(n), append(-n), unit(n))


async def _prepare(url: str) -> None:
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
        await manager.conversations.ensure_conversation("c")
        async with manager.unit_of_work() as uow:
            await uow.kv.set("warm", "up", 1)
            await uow.tasks.get_task("warm")


def main() -> None:
    url, call, path = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else _ROUNDS
    acks = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    asyncio.run(_prepare(url))
    print("ready", flush=True)
    for line in sys.stdin:
        run, burn = line.split()
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(_write(url, call, run, int(burn), acks, rounds))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
