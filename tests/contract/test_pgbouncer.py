"""Behind a real PgBouncer: found out by itself, or told; in transaction and in session mode."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import text

from modules.storage.manager import StorageManager
from modules.storage.pool import SQLPool
from modules.store_common.errors import UnavailableError
from tests.support.cluster import free_port

from . import scratch

pytestmark = pytest.mark.postgresql


@pytest.fixture(params=["transaction", "session"])
def bouncer(request: Any, pgbouncer: str, databases: Any, tmp_path: Path) -> Iterator[Any]:
    """A PgBouncer in front of a migrated database; gives (its URL, its mode)."""
    direct = databases.url("postgresql", migrated=True)
    parts = urlsplit(direct)
    options = parse_qs(parts.query)
    host = options.get("host", [parts.hostname])[0]
    port = options.get("port", [str(parts.port)])[0]
    name = parts.path.lstrip("/")
    configuration = tmp_path / "pgbouncer.ini"
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        os.chmod(directory, 0o755)
    for _ in range(5):
        listens = free_port()
        configuration.write_text(
            f"[databases]\n{name} = host={host} port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {listens}\nauth_type = any\npool_mode = {request.param}\nunix_socket_dir =\n"
            + ("user = nobody\n" if os.geteuid() == 0 else "")
        )
        process = subprocess.Popen([pgbouncer, "-q", str(configuration)], stderr=subprocess.DEVNULL)
        if _listens(listens, process):
            break
    else:
        raise AssertionError("PgBouncer ends at once")
    try:
        yield f"postgresql://postgres@127.0.0.1:{listens}/{name}", request.param
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int, process: Any) -> bool:
    """Wait until it listens; False when it ended, as it does when somebody else has taken the port meanwhile."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
        except OSError:
            time.sleep(0.01)
            continue
        return process.poll() is None
    process.kill()
    process.wait(60)
    raise AssertionError("PgBouncer does not listen")


async def _works(manager: StorageManager) -> None:
    await asyncio.gather(*(manager.kv.set("n", str(n), n) for n in range(40)))
    found = await asyncio.gather(*(manager.kv.get("n", str(n)) for n in range(40)))
    assert list(found) == list(range(40))
    async with manager.unit_of_work() as uow:
        await uow.kv.set("n", "0", "zero")
        async with uow.session() as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
    assert await manager.kv.get("n", "0") == "zero"

    def sync_work() -> Any:
        with manager.get_sql_engine().connect() as connection:
            return [
                connection.execute(text("SELECT count(*) FROM atlas_kv_entries")).scalar() for _ in range(8)
            ]

    assert await asyncio.to_thread(sync_work) == [40] * 8


@pytest.mark.parametrize("told", ["auto", "right"])
async def test_everything_works(bouncer: Any, told: str) -> None:
    url, mode = bouncer
    pooler = "auto" if told == "auto" else mode
    async with StorageManager(scratch.wide_settings(url, pooler=pooler)) as manager:
        facts: Any = manager.sql_pool.executor.facts  # type: ignore[union-attr]
        assert facts.behind_pooler
        await _works(manager)


async def test_told_that_there_is_none_it_says_what_to_set(bouncer: Any) -> None:
    pool = SQLPool(scratch.wide_settings(bouncer[0], pooler="none").sql)
    with pytest.raises(UnavailableError, match=r"sql\.pooler"):
        await pool.initialize()
