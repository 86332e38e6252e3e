"""P3 and P4: after any single fault at any step, and a second one during recovery, a unit is whole or absent in both stores.

A part of the grid runs always; `ATLAS_TEST_FULL=1` runs every cell for every pair of stores, in eight parts each, so that one can
be run alone (`-k "sqlite+chroma-part3"`). Counts are printed (`pytest -rA`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, AsyncIterator, Dict

import pytest

from tests.faults.outbox_grid import Cell, Grid, first_faults, second_faults
from tests.support.sqlite import migrated_template

FULL = bool(os.environ.get("ATLAS_TEST_FULL"))
PARTS = 8 if FULL else 1
QUICK = [
    *(Cell(point, "kill") for point in ("unit.outbox_written", "unit.before_commit", "unit.committed")),
    *(Cell(point, "kill") for point in ("relay.claimed", "relay.applied", "unit.compensating")),
    Cell("unit.before_commit", "raise"),
    Cell("unit.committed", "duplicate"),
    Cell("relay.before_apply", "hang"),
    Cell("relay.applied", "lost"),
    Cell("relay.applied", "duplicate"),
    Cell("unit.committed", "kill", "relay.applied"),
]
PAIRS = [
    "sqlite+second",
    pytest.param("postgresql+second", marks=pytest.mark.postgresql),
    "sqlite+chroma",
    pytest.param("postgresql+chroma", marks=pytest.mark.postgresql),
    pytest.param("postgresql+pinecone", marks=pytest.mark.postgresql),
    pytest.param("sqlite+mongo", marks=pytest.mark.mongodb),
    pytest.param("postgresql+mongo", marks=[pytest.mark.postgresql, pytest.mark.mongodb]),
]
ALWAYS = [PAIRS[0], PAIRS[5]]
# FerretDB is slow: each cell takes some 5 s
FEW = [
    Cell("relay.applied", "kill"),
    Cell("relay.before_apply", "hang"),
    Cell("unit.committed", "kill", "relay.applied"),
]


def _sqlite(directory: Path, name: str) -> str:
    shutil.copyfile(migrated_template(), directory / name)
    return f"sqlite:///{directory / name}"


@contextlib.asynccontextmanager
async def _pair(
    name: str, directory: Path, databases: Any, request: pytest.FixtureRequest
) -> AsyncIterator[Dict[str, Any]]:
    sql, _, target = name.partition("+")
    config: Dict[str, Any] = {
        "sql": _sqlite(directory, "home.sqlite3") if sql == "sqlite" else databases.url(sql, migrated=True),
        "target": target,
    }
    if target == "second":
        config["second"] = _sqlite(directory, "second.sqlite3")
        yield config
    elif target == "mongo":
        server = request.getfixturevalue("mongodb")
        config["mongo"] = server.settings(f"{server.database}_grid_{sql}")
        yield config
    elif target == "chroma":
        pytest.importorskip("chromadb")
        from tests.support.chroma import ChromaServer

        server = ChromaServer(directory / "chroma")
        server.start()
        try:
            config["vectors"] = {
                "backend": "chroma",
                "chroma_host": "127.0.0.1",
                "chroma_port": server.port,
                "chroma_database": server.make_database(),
            }
            yield config
        finally:
            server.stop()
    else:
        pytest.importorskip("pinecone", minversion="10")
        pytest.importorskip("aiohttp")
        from tests.emulators.pinecone import PineconeEmulator

        async with PineconeEmulator() as emulator:
            config["options"] = {"api_key": emulator.api_key, "host": emulator.host, "dimension": 2}
            yield config
            emulator.check()


@pytest.mark.timeout(900 if FULL else 240)
@pytest.mark.parametrize("part", range(PARTS), ids=lambda number: f"part{number}")
@pytest.mark.parametrize("pair", PAIRS if FULL else ALWAYS)
async def test_every_cell_converges(
    pair: str, part: int, tmp_path: Path, databases: Any, request: pytest.FixtureRequest
) -> None:
    always = FEW if pair.endswith("mongo") else QUICK
    cells = [*first_faults(), *second_faults()][part::PARTS] if FULL else always
    async with _pair(pair, tmp_path, databases, request) as config, Grid(config, tmp_path) as grid:
        for cell in cells:
            await grid.run(cell)
        print(f"{pair}: {len(grid.hits)} cells hit of {len(cells)}, slowest recovery {grid.slowest_s:.1f} s")
        for name, count in sorted(grid.hits.items()):
            print(f"  {count} x {name}")
        assert sum(grid.hits.values()) == len(cells)
