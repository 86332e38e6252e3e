"""A migrated SQLite database, made once per test run and copied for each test."""

from __future__ import annotations

from pathlib import Path

from tests.support.postgres import _only_one, migrate

__all__ = ["migrated_template"]


def migrated_template() -> Path:
    """Return the file to copy."""
    with _only_one("sqlite-template") as directory:
        path = directory / "template.sqlite3"
        if not path.exists():
            partial = directory / "template.part"
            for left_over in directory.glob("template.part*"):  # of a migration that failed
                left_over.unlink()
            migrate(f"sqlite:///{partial}")
            left = [p.name for p in directory.glob("template.part-*") if p.stat().st_size]
            assert not left, f"a clean shutdown leaves one file, not also {left}"
            partial.rename(path)
    return path
