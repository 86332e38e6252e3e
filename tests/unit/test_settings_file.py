"""The `storage:` block that `setup` writes: read again it gives the same settings, and the rest of the file is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from modules.storage.settings import SettingsError, StorageSettings
from modules.storage.settings_file import has_block, render_block, write_block

_CANARY = "s3cr3t-canary"
_SETTINGS: Dict[str, Any] = {
    "default": {},
    "url with a password": {
        "sql": {"url": f"postgresql://user:{_CANARY}@db.example.com/mydb?sslmode=require"}
    },
    "url without": {"sql": {"url": "sqlite:////var/lib/atlas.sqlite3", "pool": {"size": 3}}},
    "parts": {"sql": {"dialect": "postgresql", "host": "db", "password": _CANARY, "tls_mode": "verify-ca"}},
    "others": {
        "mongo": {"url": f"mongodb://user:{_CANARY}@db/x"},
        "vectors": {"backend": "pinecone", "pinecone_api_key": _CANARY},
        "kv": {"backend": "mongo"},
        "default_tenant_id": "${not a reference}",
        "use_mongo_for_jobs": True,
    },
}


@pytest.mark.parametrize("name", _SETTINGS)
@pytest.mark.parametrize("plain", [False, True])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, plain: bool) -> None:
    settings = StorageSettings.from_dict(_SETTINGS[name])
    block = render_block(settings, plain_secrets=plain)
    file = tmp_path / "config.yaml"
    write_block(file, block)
    secrets = {
        row.env: value.get_secret_value() for row, value in settings.chosen() if row.env in block.variables
    }

    # the variables are settings themselves, and say the same
    again = StorageSettings.load(file, secrets)

    assert again == settings
    assert (_CANARY in block.text) is (plain and _CANARY in str(_SETTINGS[name]))
    assert bool(block.variables) is (not plain and _CANARY in str(_SETTINGS[name]))


_OTHERS = "# ours\nname: demo # keep\n\n# about storage\n{}\n# about tools\ntools:\n  - a\n"


@pytest.mark.parametrize(
    "old",
    [
        "storage:\n  sql:\n    # a comment\n    path: old.sqlite3\n\n  kv: {backend: sql}",
        "storage: {}",
        "storage:",
    ],
)
def test_the_block_is_replaced_and_nothing_else(tmp_path: Path, old: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(_OTHERS.format(old), encoding="utf-8")
    assert has_block(file)

    write_block(file, render_block(StorageSettings.from_dict({"sql": {"path": "new.sqlite3"}})))

    assert file.read_text(encoding="utf-8").replace("\n\n", "\n") == _OTHERS.format(
        "storage:\n  sql:\n    path: new.sqlite3"
    ).replace("\n\n", "\n")
    assert StorageSettings.load(file, {}).sql.path == "new.sqlite3"


def test_a_file_without_a_block_gets_one_and_a_new_file_is_the_owner_s(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    block = render_block(StorageSettings())
    write_block(file, block)
    assert file.stat().st_mode & 0o777 == 0o600

    other = tmp_path / "other.yaml"
    other.write_text("tools: []", encoding="utf-8")
    other.chmod(0o644)
    write_block(other, block)
    assert other.read_text(encoding="utf-8").startswith("tools: []\n\nstorage:")
    assert other.stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be"):
        write_block(tmp_path / "missing" / "config.yaml", render_block(StorageSettings()))

    assert not list(tmp_path.iterdir())
