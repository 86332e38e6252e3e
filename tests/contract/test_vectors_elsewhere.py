"""`vectors.backend` names a provider of somebody else: installed with an entry point, or registered by a decorator."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any, Iterator

import pytest

from modules.storage.health import HealthStatus
from modules.storage.manager import StorageManager
from modules.storage.settings import SettingsError, StorageSettings, VectorBackendType
from modules.storage.vectors import registry
from modules.storage.vectors.base import VectorDocument
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.storage.vectors.registry import available_vector_providers, register_vector_provider
from modules.store_common.errors import StorageError

PACKAGE = """
from modules.storage.vectors.in_memory import InMemoryProvider


class BoxProvider(InMemoryProvider):
    name = "box"

    @classmethod
    def from_context(cls, context):
        return cls(tenancy=context.tenancy)
"""


def install(directory: Path, name: str, target: str) -> None:
    """Lay a package out as pip would: its module, and beside it what it says of itself."""
    (directory / "atlas_box.py").write_text(textwrap.dedent(PACKAGE), encoding="utf-8")
    about = directory / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(
        f"[atlas_storage.vector_providers]\n{name} = {target}\n", encoding="utf-8"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    sys.modules.pop("atlas_box", None)


def settings(tmp_path: Path, backend: str) -> StorageSettings:
    return StorageSettings.from_dict(
        {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"backend": backend}}
    )


async def test_an_installed_package(site: Path, tmp_path: Path) -> None:
    install(site, "box", "atlas_box:BoxProvider")
    assert "box" in available_vector_providers()
    async with StorageManager(settings(tmp_path, "box")) as storage:
        assert (storage.vectors.name, storage.vector_registry.list_instances()) == ("box", ["box"])
        await storage.vectors.create_collection("docs", 2)
        await storage.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0])])
        assert [hit.document.id for hit in await storage.vectors.search("docs", [1.0, 0.0])] == ["a"]
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert (health.status, health.details["backend"]) == (HealthStatus.HEALTHY, "box")
        assert (await storage.verify_stores())["vector_store"] is True


async def test_a_class_registered_by_the_application(site: Path, tmp_path: Path) -> None:
    chosen = settings(tmp_path, "crate")

    @register_vector_provider("crate")
    class Crate(InMemoryProvider):
        name = "crate"

        @classmethod
        def from_context(cls, context: Any) -> Any:
            return cls(tenancy=context.tenancy)

    async with StorageManager(chosen) as storage:
        assert isinstance(storage.vectors, Crate)


async def test_a_name_that_nobody_registered(site: Path, tmp_path: Path) -> None:
    install(site, "box", "atlas_box:BoxProvider")
    with pytest.raises(
        SettingsError, match=r"there are box, chroma, .*sqlite, none; did you mean box"
    ) as caught:
        await StorageManager(settings(tmp_path, "boxx")).initialize()
    assert (caught.value.key, caught.value.source) == ("vectors.backend", "mapping: vectors.backend")
    assert os.listdir(tmp_path) == ["site"], "refused before anything was opened"


async def test_a_package_that_lacks_something(site: Path, tmp_path: Path) -> None:
    install(site, "box", "atlas_absent:BoxProvider")
    async with StorageManager(settings(tmp_path, "box")) as storage:
        with pytest.raises(StorageError, match="'box' of another package cannot be loaded") as caught:
            _ = storage.vectors
        assert isinstance(caught.value.__cause__, ImportError)
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert health.status is HealthStatus.UNHEALTHY


def test_names_of_ours_are_of_the_enum(tmp_path: Path) -> None:
    assert settings(tmp_path, " Chroma ").vectors.backend is VectorBackendType.CHROMA
    theirs = settings(tmp_path, " box ")
    assert theirs.vectors.backend == "box"
    assert StorageSettings.from_dict(theirs.to_dict()) == theirs
    assert theirs.merged_with({"default_tenant_id": "t"}).vectors.backend == "box"
