"""Fixtures for every test: real databases, each test its own, and a check that nothing is left open.

    backend            parametrised: "sqlite", "sqlite-memory", "postgresql" (marker `postgresql`); suites of stores that
                       MongoDB can hold, too, take `tests.support.backends.backend` instead, which adds "mongodb"
    settings           `StorageSettings` of an EMPTY database of that backend
    migrated_settings  the same for a database with all tables
    pool               an initialised `SQLPool` on `settings`
    storage            an initialised `StorageManager` on `migrated_settings`
    postgres           the PostgreSQL server of this run, whatever the backend (see `tests.support.postgres`)
    mongodb            the MongoDB-protocol server of this run (marker `mongodb`; see `tests.support.mongo`)
    leaks              a `LeakWatch`: fails the test when threads, tasks, connections or files are left behind
    strace, pgbouncer  the path of the tool

A backend that is not there skips its tests and says why; one that `ATLAS_REQUIRE_BACKENDS` names fails them instead.
Nothing here is imported before it is needed: the core suite runs without PostgreSQL's packages.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Iterator, List, Optional

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.support import mongo as mongo_support
from tests.support import postgres as postgres_support
from tests.support import sqlite as sqlite_support
from tests.support.leaks import LeakWatch

hypothesis_settings.register_profile(
    "atlas",
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)
hypothesis_settings.load_profile("atlas")

BACKENDS = ["sqlite", "sqlite-memory", pytest.param("postgresql", marks=pytest.mark.postgresql)]
_KEPT = ("ATLAS_TEST_", "ATLAS_REQUIRE_")
_run_directory: Optional[Path] = None


def pytest_configure(config: pytest.Config) -> None:
    global _run_directory
    for name in [n for n in os.environ if n.startswith("ATLAS_") and not n.startswith(_KEPT)]:
        del os.environ[name]  # a developer's own configuration is not part of a test
    if sys.version_info < (3, 10):
        # The newest pytest-asyncio for 3.9 calls get_event_loop(), which makes a loop that nobody closes as long as none was
        # ever set; the first asyncio.run() of a test drops it, and the collector fails whichever test runs then.
        asyncio.set_event_loop(None)
    if not hasattr(config, "workerinput"):
        _run_directory = postgres_support.make_run_directory()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _run_directory is not None:
        mongo_support.stop_mongo_of_this_run(_run_directory)
        postgres_support.stop_server_of_this_run(_run_directory)


def skip_or_fail(capability: str, reason: str) -> None:
    """Skip the test, or fail it when this run promised the capability (`ATLAS_REQUIRE_BACKENDS=postgresql`)."""
    promised = os.environ.get("ATLAS_REQUIRE_BACKENDS", "").replace(" ", "").split(",")
    if capability in promised:
        pytest.fail(f"ATLAS_REQUIRE_BACKENDS names {capability}: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", name="_postgres_server")
def _postgres_server_fixture() -> Iterator[Any]:
    """The server and why there is none; kept apart from `postgres` so that each test skips or fails by itself."""
    server, reason = postgres_support.server_of_this_run()
    yield server, reason
    if server is not None:
        server.close()


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> postgres_support.Server:
    server, reason = request.getfixturevalue("_postgres_server")
    if server is None:
        skip_or_fail("postgresql", reason)
    return server


@pytest.fixture(scope="session", name="_mongo_server")
def _mongo_server_fixture() -> Iterator[Any]:
    server, reason = mongo_support.mongo_of_this_run()
    yield server, reason
    if server is not None:
        server.close()


@pytest.fixture
def mongodb(request: pytest.FixtureRequest) -> mongo_support.MongoServer:
    server, reason = request.getfixturevalue("_mongo_server")
    if server is None:
        skip_or_fail("mongodb", reason)
    return server


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "postgresql":
        request.getfixturevalue("postgres")
    return str(request.param)


class Databases:
    """Makes databases for one test and drops them after it."""

    def __init__(self, request: pytest.FixtureRequest, directory: Path) -> None:
        self._request = request
        self._directory = directory
        self._dropped: List[Any] = []
        self._made = 0

    def url(self, backend: str, *, migrated: bool = False, tcp: bool = False) -> str:
        """Return the URL of a new database. `sqlite-memory` starts empty always (it lives with its pool)."""
        self._made += 1
        if backend == "sqlite-memory":
            return "sqlite:///:memory:"
        if backend == "sqlite":
            path = self._directory / f"storage-{self._made}.sqlite3"
            if migrated:
                shutil.copyfile(sqlite_support.migrated_template(), path)
            return f"sqlite:///{path}"
        server = self._request.getfixturevalue("postgres")
        name = server.create_database(migrated=migrated)
        self._dropped.append((server, name))
        return server.url_of(name, tcp=tcp)

    def drop(self) -> None:
        for server, name in self._dropped:
            server.drop_database(name)


@pytest.fixture
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Databases]:
    made = Databases(request, tmp_path)
    yield made
    made.drop()


@pytest.fixture
def settings(backend: str, databases: Databases) -> Any:
    from modules.storage.settings import StorageSettings

    return StorageSettings.from_dict({"sql": {"url": databases.url(backend)}})


@pytest.fixture
def migrated_settings(request: pytest.FixtureRequest, backend: str, databases: Databases) -> Any:
    from modules.storage.settings import StorageSettings

    if backend == "mongodb":
        return request.getfixturevalue("mongo_settings")
    return StorageSettings.from_dict({"sql": {"url": databases.url(backend, migrated=True)}})


@pytest.fixture
def mongo_settings(mongodb: mongo_support.MongoServer, databases: Databases) -> Any:
    """Settings that keep in MongoDB what can be kept there: this worker's database, with indexes and nothing in it."""
    from modules.storage.settings import StorageSettings
    from tests.support.backends import empty_database

    found = StorageSettings.from_dict(
        {
            "sql": {"url": databases.url("sqlite", migrated=True)},
            "mongo": mongodb.settings(),
            "use_mongo_for_conversations": True,
            "use_mongo_for_jobs": True,
            "kv": {"backend": "mongo"},
        }
    )
    empty_database(found.mongo)
    return found


@pytest.fixture
async def leaks(request: pytest.FixtureRequest) -> AsyncIterator[LeakWatch]:
    """Compares what is open before and after; databases to look at are named by `watch.url(url)`."""
    watch = LeakWatch(request.config)
    yield watch
    await watch.check()


@pytest.fixture
async def pool(settings: Any, leaks: LeakWatch, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from modules.storage.pool import SQLPool

    made = SQLPool(settings.sql)
    leaks.database(settings.sql.get_url(), _server_or_none(request, settings))
    await made.initialize()
    try:
        yield made
    finally:
        await made.shutdown()


@pytest.fixture
def background(request: pytest.FixtureRequest) -> bool:
    """Whether `storage` does upkeep and delivers by itself: where the test, its class or its module is marked `background`.

    A test that looks twice at what is stored must not depend on when a round of upkeep falls.
    """
    return request.node.get_closest_marker("background") is not None


@pytest.fixture
async def storage(
    migrated_settings: Any, leaks: LeakWatch, request: pytest.FixtureRequest, background: bool
) -> AsyncIterator[Any]:
    from modules.storage.manager import StorageManager

    made = StorageManager(migrated_settings, background=background)
    leaks.database(migrated_settings.sql.get_url(), _server_or_none(request, migrated_settings))
    await made.initialize()
    try:
        await made.ensure_schemas()
        yield made
    finally:
        await made.shutdown()


def _server_or_none(request: pytest.FixtureRequest, settings: Any) -> Any:
    url = settings.sql.get_url()
    return request.getfixturevalue("postgres") if url.startswith("postgresql") else None


def _tool(name: str, why: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        skip_or_fail(name, f"{name} is not installed ({why}): apt-get install {name}")
    return str(path)


@pytest.fixture
def strace() -> str:
    return _tool("strace", "it injects faults into system calls")


@pytest.fixture
def pgbouncer() -> str:
    return _tool("pgbouncer", "the pooler in front of PostgreSQL")


@pytest.fixture
def child_environment() -> Dict[str, str]:
    """The environment for a child process that imports `modules` and `tests`."""
    return {**os.environ, "PYTHONPATH": str(postgres_support.ROOT), "PYTHONWARNINGS": "error"}
