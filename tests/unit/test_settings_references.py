"""`${NAME}` in a settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from modules.storage.settings import SettingsError, StorageSettings

_CANARY = "s3cr3t-canary"


def _load(tmp_path: Path, block: str, environ: Dict[str, str]) -> StorageSettings:
    file = tmp_path / "config.yaml"
    file.write_text(f"storage:\n{block}", encoding="utf-8")
    return StorageSettings.load(file, environ)


def test_references_are_resolved_wherever_text_stands(tmp_path: Path) -> None:
    settings = _load(
        tmp_path,
        "  sql:\n    url: postgresql://user:${PASSWORD}@${HOST:-localhost}/mydb\n    pool: {size: '${SIZE}'}\n"
        "  require_tenant_context: ${STRICT:-true}\n  default_tenant_id: $${literal}\n",
        {"PASSWORD": _CANARY, "SIZE": "7", "HOST": " "},
    )

    assert settings.sql.get_url() == f"postgresql://user:{_CANARY}@localhost/mydb"
    assert settings.sql.pool.size == 7
    assert settings.require_tenant_context is True
    assert settings.default_tenant_id == "${literal}"
    assert _CANARY not in repr(settings)
    assert settings.sources["sql.url"].endswith("config.yaml: storage.sql.url")


@pytest.mark.parametrize(
    ("value", "words"),
    [("${MISSING}", "MISSING, which is not set"), ("${not a name}", "malformed"), ("${}", "malformed")],
)
def test_a_reference_without_a_value_names_setting_file_and_variable(
    tmp_path: Path, value: str, words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(tmp_path, f"  sql: {{password: '{value}'}}\n", {"OTHER": _CANARY})

    text = str(caught.value)
    assert words in text
    assert "sql.password" in text
    assert "config.yaml" in text
    assert _CANARY not in text


def test_a_mapping_is_taken_as_it_is() -> None:
    given: Any = {"default_tenant_id": "${HOME}"}

    assert StorageSettings.from_dict(given).default_tenant_id == "${HOME}"
