"""docs/configuration.md and the settings models say the same; the file is printed anew by running this module.

python tests/unit/test_settings_docs.py    # prints the tables

"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

from modules.storage.settings import StorageSettings
from modules.storage.settings_sources import Setting, settings_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ISSUE_NAMES = {
    "ATLAS_SQL_DIALECT",
    "ATLAS_SQL_URL",
    "ATLAS_SQL_HOST",
    "ATLAS_SQL_PORT",
    "ATLAS_SQL_DATABASE",
    "ATLAS_SQL_USERNAME",
    "ATLAS_SQL_PASSWORD",
    "ATLAS_SQL_POOL_SIZE",
    "ATLAS_SQL_POOL_MAX_OVERFLOW",
    "ATLAS_SQL_POOL_TIMEOUT",
    "ATLAS_SQL_POOL_RECYCLE",
    "ATLAS_SQL_POOL_PRE_PING",
    "ATLAS_MONGO_URL",
    "ATLAS_MONGO_AUTH_SOURCE",
    "ATLAS_VECTOR_BACKEND",
    "ATLAS_VECTOR_COLLECTION",
    "ATLAS_VECTOR_DIMENSION",
    "ATLAS_VECTOR_PGVECTOR_M",
    "ATLAS_VECTOR_PINECONE_API_KEY",
    "ATLAS_VECTOR_CHROMA_HOST",
    "ATLAS_KV_NAMESPACE_QUOTA_BYTES",
    "ATLAS_RETENTION_CONVERSATION_DAYS",
    "ATLAS_REQUIRE_TENANT_CONTEXT",
    "ATLAS_DEFAULT_TENANT_ID",
    "ATLAS_HEALTH_CHECK_INTERVAL",
    "ATLAS_HEALTH_CHECK_TIMEOUT",
    "ATLAS_USE_MONGO_FOR_CONVERSATIONS",
    "ATLAS_USE_MONGO_FOR_JOBS",
}


def default_text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def line(row: Setting) -> str:
    return f"| `{row.key}` | `{row.env}` | {default_text(row.default)} | {row.description} |"


def test_page_lists_every_setting_as_it_is() -> None:
    written = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| `")]
    assert sorted(written) == sorted(line(row) for row in settings_table(StorageSettings))


def test_every_setting_is_described_and_names_are_unique() -> None:
    rows = settings_table(StorageSettings)
    assert all(row.description.endswith(".") for row in rows)
    assert len({row.env for row in rows}) == len({row.path for row in rows}) == len(rows)
    assert {row.env for row in rows} >= ISSUE_NAMES


def test_numbers_of_time_and_size_say_their_unit() -> None:
    for row in settings_table(StorageSettings):
        name = row.path[-1]
        if re.search(r"timeout|recycle|interval|idle|ttl|_ms$|_s$|bytes|days", name):
            assert re.search(r"[Ss]econds|Milliseconds|Bytes|Days", row.description), row.key


if __name__ == "__main__":
    for setting in settings_table(StorageSettings):
        print(line(setting))
