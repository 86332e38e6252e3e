"""Fixtures of the fault tests: a PostgreSQL server of one's own, to freeze, kill and restart."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from tests.support.cluster import Cluster, temporary_cluster
from tests.support.postgres import migrate

# The role `checked` must give its password over TCP; nobody else is asked for one.
RULES = ["host all checked 127.0.0.1/32 scram-sha-256"]


class OwnServer:
    """A private server; each test gets a migrated database on it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._made = 0
        self.sql("CREATE DATABASE atlas_template TEMPLATE template0")
        migrate(cluster.url("atlas_template"))

    def sql(self, text: str, database: str = "postgres") -> Any:
        """Run one statement on a connection of its own; returns the rows, if any."""
        import psycopg

        with psycopg.connect(self.cluster.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else None

    def new_database(self) -> str:
        self._made += 1
        name = f"fault_{self._made}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE atlas_template")
        return name


@pytest.fixture(scope="session")
def _own_server(_postgres_server: Any) -> Iterator[Any]:
    try:
        with temporary_cluster(rules=RULES) as cluster:
            yield OwnServer(cluster)
    except ImportError as exc:
        yield exc


@pytest.fixture
def own_server(_own_server: Any, postgres: Any) -> Iterator[OwnServer]:
    """A server that a test may freeze or kill; it is made whole again afterwards."""
    if isinstance(_own_server, ImportError):
        pytest.skip(f"needs a PostgreSQL server to harm: {_own_server}")
    yield _own_server
    cluster = _own_server.cluster
    if cluster.process is None or cluster.process.poll() is not None:
        cluster.process = None
        cluster.start()
    else:
        cluster.thaw()
