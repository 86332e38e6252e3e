"""The package as it is installed: one version, a namespace, typed."""

from __future__ import annotations

import importlib.metadata
import re

import modules
from modules.storage.version import __version__

from . import sources
from .sources import ROOT, product

trees_are_let_go = sources.trees_are_let_go


def test_the_version_is_stated_once() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert importlib.metadata.version("atlas-storage") == __version__
    assert 'dynamic = ["version"]' in text
    assert not re.search(r"^version\s*=", text, re.MULTILINE)


def test_modules_is_a_namespace_package() -> None:
    assert getattr(modules, "__file__", None) is None
    assert not (ROOT / "modules" / "__init__.py").exists()


def test_every_package_says_that_it_is_typed() -> None:
    packages = {
        "/".join(source.path.split("/")[:2]) for source in product() if source.path.startswith("modules/")
    }

    assert not [p for p in sorted(packages) if not (ROOT / p / "py.typed").exists()]


def test_the_changelog_knows_the_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
