"""PgBouncer in front of a PostgreSQL server, as a process of one's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional
from urllib.parse import parse_qs, urlsplit

from tests.support.cluster import free_port

__all__ = ["pooler"]

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
{more}
"""


@contextmanager
def pooler(program: str, server_url: str, *, port: Optional[int] = None, more: str = "") -> Iterator[int]:
    """Run PgBouncer in transaction mode for the time of the block and give its port.

    Args:
        program: Its path: the fixture `pgbouncer`.
        server_url: Of the server behind it; the database is the one that the client names.
        port: To listen at; None: a free one.
        more: Further lines of its configuration.
    """
    port = port or free_port()
    # not pytest's directory, which is closed to the user that pgbouncer runs as
    directory = Path(tempfile.mkdtemp(prefix="atlas-pgb-"))
    directory.chmod(0o777)
    ini = directory / "pgbouncer.ini"
    ini.write_text(INI.format(target=_target(server_url), port=port, directory=directory, more=more))
    ini.chmod(0o644)
    command = [program, str(ini)]
    if os.geteuid() == 0:
        command[1:1] = ["-u", "nobody"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for_port(port, process, directory / "log")
            yield port
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(directory)


def _target(url: str) -> str:
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    host, port = query.get("host") or parts.hostname, query.get("port") or parts.port or 5432
    password = f" password={parts.password}" if parts.password else ""
    return f"host={host} port={port} user={parts.username or 'postgres'}{password}"


def _wait_for_port(port: int, process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            said = log.read_text()[-1000:] if log.exists() else ""
            assert process.poll() is None, f"pgbouncer did not start: {said}"
            assert time.monotonic() < end, f"pgbouncer does not listen: {said}"
            time.sleep(0.01)
        else:
            return
