"""P17: the stores work through PgBouncer in transaction mode, told (`pooler=transaction`) or found out (`pooler=auto`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from modules.job_store.errors import JobLeaseLostError
from modules.storage.manager import StorageManager
from modules.store_common.errors import NotFoundError
from tests.support.arguments import seed_tasks, store_calls
from tests.support.cluster import free_port

pytestmark = pytest.mark.postgresql

INI = """
[databases]
* = {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
logfile = {directory}/log
pidfile = {directory}/pid
"""


def _target(url: str) -> str:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    host, port = query.get("host") or parts.hostname, query.get("port") or parts.port or 5432
    password = f" password={parts.password}" if parts.password else ""
    return f"host={host} port={port} user={parts.username or 'postgres'}{password}"


@contextmanager
def _pooler(program: str, server_url: str) -> Iterator[int]:
    port = free_port()
    # not pytest's directory, which is closed to the user that pgbouncer runs as
    directory = Path(tempfile.mkdtemp(prefix="atlas-pgb-"))
    directory.chmod(0o777)
    ini = directory / "pgbouncer.ini"
    ini.write_text(INI.format(target=_target(server_url), port=port, directory=directory))
    ini.chmod(0o644)
    command = [program, str(ini)]
    if os.geteuid() == 0:
        command[1:1] = ["-u", "nobody"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for_port(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(10)
            shutil.rmtree(directory)


def _wait_for_port(port: int, process: Any) -> None:
    import socket

    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process.poll() is None, "pgbouncer did not start"
            assert time.monotonic() < end, "pgbouncer does not listen"
            time.sleep(0.01)
        else:
            return


@pytest.mark.parametrize("pooler", ["auto", "transaction"])
async def test_stores_through_the_pooler(
    pgbouncer: str, postgres: Any, databases: Any, leaks: Any, pooler: str
) -> None:
    name = urlsplit(databases.url("postgresql", migrated=True)).path[1:]
    with _pooler(pgbouncer, postgres.url) as port:
        url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        async with StorageManager({"sql": {"url": url, "pooler": pooler}}) as manager:
            await manager.ensure_schemas()
            assert manager.executor.options.transaction_pooling  # type: ignore[attr-defined]
            await manager.conversations.create_conversation("c")
            await manager.conversations.add_message("c", "user", "hello", message_id="m")
            await asyncio.gather(*(_work(manager, n) for n in range(30)))
            assert await manager.kv.get("ns", "units") == 30
            conversation = await manager.conversations.get_conversation("c")
            assert conversation is not None
            assert conversation.last_sequence == 61
            await seed_tasks(manager)
            made = 0
            for method, call in store_calls(manager):
                try:
                    await call()
                except (NotFoundError, JobLeaseLostError):
                    pass  # what an earlier method of the list deleted, or was never there
                except Exception as exc:
                    raise AssertionError(f"{method} through the pooler: {exc!r}") from exc
                made += 1
            assert made >= 30
            assert (await manager.health_check()).to_dict()


async def _work(manager: StorageManager, n: int) -> None:
    for k in range(5):
        await manager.kv.set("ns", f"{n}-{k}", k)
        assert await manager.kv.get("ns", f"{n}-{k}") == k
    await manager.conversations.add_message("c", "user", f"one {n}")
    async with manager.unit_of_work() as uow:
        await uow.conversations.add_message("c", "assistant", f"two {n}")
        await uow.kv.increment("ns", "units")
