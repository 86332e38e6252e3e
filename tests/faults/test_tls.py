"""P36: TLS to PostgreSQL, each mode against right and wrong certificates; asyncpg and the engine of users agree.

PgBouncer ends the TLS, since the PostgreSQL of the tests is built without. It refuses plain connections: what gets
through is encrypted.
"""

from __future__ import annotations

import shutil
import tempfile
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.store_common.errors import UnavailableError
from tests.support.certificates import Authority, Identity
from tests.support.cluster import free_port
from tests.support.pooler import pooler

pytestmark = pytest.mark.postgresql

CANARY = "canary-b7f3"


@dataclass(frozen=True)
class Papers:
    """Who may believe whom: `ours` issued the certificates of the servers, `other` issued nothing."""

    ours: Authority
    other: Authority
    servers: Dict[str, Identity]
    client: Identity


@pytest.fixture(scope="module")
def _papers() -> Iterator[Any]:
    openssl = shutil.which("openssl")
    if openssl is None:
        yield None
        return
    # not pytest's directory, which is closed to the user that pgbouncer runs as
    directory = Path(tempfile.mkdtemp(prefix="atlas-tls-"))
    directory.chmod(0o755)
    ours, other = Authority(directory, "ours", openssl), Authority(directory, "other", openssl)
    servers = {
        "right": ours.issue("right"),
        "other name": ours.issue("other-name", hosts="DNS:elsewhere.example"),
        "expired": ours.issue("expired", days=-1),
    }
    yield Papers(ours, other, servers, ours.issue("client", hosts="DNS:client.example"))
    shutil.rmtree(directory)


@pytest.fixture
def papers(_papers: Any) -> Papers:
    if _papers is None:
        pytest.skip("openssl is not installed (it makes the certificates): apt-get install openssl")
    return _papers


@contextmanager
def _server(program: str, url: str, identity: Identity, *, port: int = 0, more: str = "") -> Iterator[int]:
    mode = "" if "client_tls_sslmode" in more else "client_tls_sslmode = require\n"
    files = f"client_tls_cert_file = {identity.certificate}\nclient_tls_key_file = {identity.key}\n"
    with pooler(program, url, port=port or None, more=mode + files + more) as listening:
        yield listening


@pytest.fixture
def serve(pgbouncer: str, postgres: Any, papers: Papers) -> Callable[..., Any]:
    return lambda which, **how: _server(pgbouncer, postgres.url, papers.servers[which], **how)


@pytest.fixture
def database(databases: Any, leaks: Any) -> str:
    return urlsplit(databases.url("postgresql")).path[1:]


def _pool(port: int, database: str, *, options: str = "", host: str = "127.0.0.1", **sql: Any) -> SQLPool:
    url = f"postgresql://postgres:{CANARY}@{host}:{port}/{database}{options}"
    settings = StorageSettings.from_dict({"sql": {"url": url, "pooler": "transaction", **sql}})
    return SQLPool(settings.sql)


async def _works(pool: SQLPool) -> None:
    await pool.initialize()
    try:
        assert await pool.health_check()
        with pool.engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    finally:
        await pool.shutdown()


async def _is_refused(pool: SQLPool, caplog: pytest.LogCaptureFixture, match: str) -> None:
    with pytest.raises(UnavailableError, match=match) as caught:
        await pool.initialize()
    assert not pool.is_initialized
    shown = "".join(traceback.format_exception(None, caught.value, caught.value.__traceback__))
    assert CANARY not in shown + caplog.text


TAKEN = {
    "prefer": ("prefer", "right", False),
    "require believes anyone": ("require", "expired", False),
    "verify-ca": ("verify-ca", "right", True),
    "verify-ca does not look at the name": ("verify-ca", "other name", True),
    "verify-full": ("verify-full", "right", True),
    "require with an authority": ("require", "other name", True),
}


@pytest.mark.parametrize(("mode", "which", "knows"), TAKEN.values(), ids=list(TAKEN))
async def test_a_server_that_is_believed(
    serve: Any, database: str, papers: Papers, mode: str, which: str, knows: bool
) -> None:
    trusted = {"tls_ca_file": str(papers.ours.certificate)} if knows else {}
    with serve(which) as port:
        await _works(_pool(port, database, tls_mode=mode, **trusted))


NOT_TAKEN = {
    "verify-ca, another authority": ("verify-ca", "right", "other"),
    "verify-full, another authority": ("verify-full", "right", "other"),
    "require, another authority": ("require", "right", "other"),
    "verify-ca, only the system's authorities": ("verify-ca", "right", ""),
    "verify-full, only the system's authorities": ("verify-full", "right", ""),
    "verify-full, another name": ("verify-full", "other name", "ours"),
    "verify-ca, expired": ("verify-ca", "expired", "ours"),
    "verify-full, expired": ("verify-full", "expired", "ours"),
}


@pytest.mark.parametrize(("mode", "which", "believed"), NOT_TAKEN.values(), ids=list(NOT_TAKEN))
async def test_a_server_that_is_not_believed(
    serve: Any, database: str, papers: Papers, caplog: Any, mode: str, which: str, believed: str
) -> None:
    trusted = {"tls_ca_file": str(getattr(papers, believed).certificate)} if believed else {}
    with serve(which) as port:
        await _is_refused(_pool(port, database, tls_mode=mode, **trusted), caplog, "TLS connection")


async def test_a_plain_connection_to_a_server_that_wants_tls(serve: Any, database: str, caplog: Any) -> None:
    with serve("right") as port:
        await _is_refused(_pool(port, database, tls_mode="disable"), caplog, "tls_mode")


@pytest.mark.parametrize("which", ["other name", "expired"])
async def test_the_engine_does_not_believe_a_server_that_was_exchanged(
    serve: Any, database: str, papers: Papers, which: str
) -> None:
    port = free_port()
    pool = _pool(port, database, tls_mode="verify-full", tls_ca_file=str(papers.ours.certificate))
    with serve("right", port=port):
        await pool.initialize()
    try:
        with serve(which, port=port), pytest.raises(OperationalError, match="certificate") as caught:
            pool.engine.connect()
        assert CANARY not in str(caught.value)
        with serve("right", port=port), pool.engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
    finally:
        await pool.shutdown()


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_without_a_file_the_systems_authorities_count(
    serve: Any, database: str, papers: Papers, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.ours.certificate))
    with serve("right") as port:
        await _works(_pool(port, database, tls_mode=mode))


async def test_the_authority_may_stand_in_the_url(serve: Any, database: str, papers: Papers) -> None:
    options = f"?sslmode=verify-full&sslrootcert={papers.ours.certificate}"
    with serve("right") as port:
        await _works(_pool(port, database, options=options))


async def test_another_authority_in_the_url(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    options = f"?sslmode=verify-full&sslrootcert={papers.other.certificate}"
    with serve("right") as port:
        await _is_refused(_pool(port, database, options=options), caplog, "TLS connection")


async def test_localhost_is_a_name_too(serve: Any, database: str, papers: Papers) -> None:
    trusted = str(papers.ours.certificate)
    with serve("right") as port:
        await _works(_pool(port, database, host="localhost", tls_mode="verify-full", tls_ca_file=trusted))


# --- the client's own certificate ---------------------------------------------------------------------------------


def _asks_for_one(papers: Papers) -> str:
    return f"client_tls_sslmode = verify-full\nclient_tls_ca_file = {papers.ours.certificate}\n"


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_a_server_that_asks_for_the_clients_certificate(
    serve: Any, database: str, papers: Papers, mode: str
) -> None:
    options = f"?sslmode={mode}&sslrootcert={papers.ours.certificate}"
    options += f"&sslcert={papers.client.certificate}&sslkey={papers.client.key}"
    papers.client.key.chmod(0o600)  # libpq refuses a key that others may read
    with serve("right", more=_asks_for_one(papers)) as port:
        await _works(_pool(port, database, options=options))


async def test_a_client_without_the_certificate_that_is_asked_for(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = str(papers.ours.certificate)
    with serve("right", more=_asks_for_one(papers)) as port:
        pool = _pool(port, database, tls_mode="verify-full", tls_ca_file=trusted)
        await _is_refused(pool, caplog, "PostgreSQL")


async def test_a_client_certificate_that_is_not_there(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    options = f"?sslmode=verify-full&sslrootcert={papers.ours.certificate}&sslcert=/no/such.pem"
    with serve("right") as port:
        await _is_refused(_pool(port, database, options=options), caplog, "sslcert")


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_a_key_under_a_password(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    locked = papers.ours.lock(papers.client, f"{CANARY}-key")
    # with `require` and no authority nothing is checked, and the files are read by asyncpg itself
    options = f"?sslmode={mode}&sslcert={locked.certificate}&sslkey={locked.key}"
    if mode == "verify-full":
        options += f"&sslrootcert={papers.ours.certificate}"
    with serve("right", more=_asks_for_one(papers)) as port:
        await _works(_pool(port, database, options=f"{options}&sslpassword={CANARY}-key"))
        await _is_refused(_pool(port, database, options=f"{options}&sslpassword={CANARY}"), caplog, "sslkey")


# --- revoked certificates ------------------------------------------------------------------------------------------


async def test_a_server_whose_certificate_was_revoked(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    options = f"?sslmode=verify-full&sslrootcert={papers.ours.certificate}&sslcrl="
    others, this = papers.ours.revoke(papers.client), papers.ours.revoke(papers.servers["right"])
    with serve("right") as port:
        await _works(_pool(port, database, options=f"{options}{others}"))
        await _is_refused(_pool(port, database, options=f"{options}{this}"), caplog, "TLS connection")


async def test_a_list_of_revoked_certificates_that_is_not_there(
    serve: Any, database: str, papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    options = f"?sslmode=verify-full&sslrootcert={papers.ours.certificate}&sslcrl=/no/such.pem"
    with serve("right") as port:
        await _is_refused(_pool(port, database, options=options), caplog, "sslcrl")


# --- what goes without a check ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "warns"), [("prefer", 1), ("require", 1), ("disable", 1), ("verify-ca", 0)])
async def test_a_remote_server_that_is_not_checked_is_told_once(caplog: Any, mode: str, warns: int) -> None:
    nobody = "192.0.2.1"  # TEST-NET-1 of RFC 5737: no host has it
    sql = {"dialect": "postgresql", "host": nobody, "tls_mode": mode, "connect_timeout_s": 0.05}
    with pytest.raises(UnavailableError):
        await SQLPool(StorageSettings.from_dict({"sql": sql}).sql).initialize()
    assert caplog.messages.count("storage.postgresql.server_not_verified") == warns
