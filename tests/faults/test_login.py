"""A server that checks passwords (SCRAM-SHA-256): the right one, wrong ones, one that is changed; no secret is shown."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Dict

import pytest
from sqlalchemy import text

from modules.storage.manager import StorageManager
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.store_common.errors import PermissionDeniedError
from tests.faults.conftest import OwnServer

pytestmark = pytest.mark.postgresql

#: Every character that means something in a URL or in a libpq string.
PASSWORD = "canary-9c:/?#[]@!$&'%41 \"\\ü"
WRONG = "canary-2f-wrong"


def _set_password(server: OwnServer, password: str) -> None:
    quoted = password.replace("'", "''")
    server.sql(f"ALTER ROLE checked PASSWORD '{quoted}'")


@pytest.fixture
def login(own_server: OwnServer, leaks: Any) -> Dict[str, Any]:
    """What `sql` settings need to log in as a role that must give `PASSWORD`, on a database that has all tables."""
    if not own_server.sql("SELECT 1 FROM pg_roles WHERE rolname = 'checked'"):
        own_server.sql("CREATE ROLE checked LOGIN SUPERUSER")
    _set_password(own_server, PASSWORD)
    return {
        "dialect": "postgresql",
        "host": "127.0.0.1",
        "port": own_server.cluster.port,
        "database": own_server.new_database(),
        "username": "checked",
        "password": PASSWORD,
    }


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(None, error, error.__traceback__)) + repr(error)


async def test_the_right_password(login: Dict[str, Any]) -> None:
    pool = SQLPool(StorageSettings.from_dict({"sql": login}).sql)
    await pool.initialize()
    try:
        assert await pool.health_check()
        with pool.engine.connect() as connection:
            assert connection.execute(text("SELECT current_user")).scalar() == "checked"
    finally:
        await pool.shutdown()


@pytest.mark.parametrize("given", [WRONG, "", None], ids=["wrong", "empty", "none"])
async def test_a_password_that_is_refused(login: Dict[str, Any], caplog: Any, given: Any) -> None:
    manager = StorageManager({"sql": {**login, "password": given}})
    with pytest.raises(PermissionDeniedError, match=r"sql\.password") as caught:
        await manager.initialize()
    assert not caught.value.retryable
    assert not manager.is_initialized
    assert "canary" not in _shown(caught.value) + caplog.text


async def test_a_role_that_may_not_log_in(
    own_server: OwnServer, login: Dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    own_server.sql("ALTER ROLE checked NOLOGIN")
    try:
        with pytest.raises(PermissionDeniedError, match=r"sql\.username") as caught:
            await StorageManager({"sql": login}).initialize()
    finally:
        own_server.sql("ALTER ROLE checked LOGIN")
    assert "canary" not in _shown(caught.value) + caplog.text


async def test_a_password_that_is_changed_while_the_manager_runs(
    own_server: OwnServer, login: Dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # without upkeep, which would have the open connection in its hands when the call comes
    async with StorageManager({"sql": login}, background=False) as manager:
        await manager.kv.set("ns", "k", 1)
        _set_password(own_server, WRONG)
        assert await manager.kv.get("ns", "k") == 1  # open connections stay
        # each is given its time to end: the signal alone is not the end
        ended = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'checked'"
        assert all(row[0] for row in own_server.sql(ended))
        with pytest.raises(PermissionDeniedError) as caught:
            await manager.kv.get("ns", "k")
        assert "canary" not in _shown(caught.value) + caplog.text
        _set_password(own_server, PASSWORD)
        assert await manager.kv.get("ns", "k") == 1


def test_the_command_line_tells_it_in_one_line(
    login: Dict[str, Any], tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    given = {f"ATLAS_SQL_{name.upper()}": str(value) for name, value in {**login, "password": WRONG}.items()}
    program = Path(sys.executable).with_name("atlas-storage")
    done = subprocess.run(
        [str(program), "current"],
        cwd=tmp_path,
        env={**child_environment, **given, "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "sql.password" in done.stderr
    assert "canary" not in done.stdout + done.stderr
