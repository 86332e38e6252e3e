"""What older parts of ATLAS know of storage: the words in which they ask for it.

`ATLAS.config.storage` and `ATLAS.setup.controller` hand these names out; they stand here because storage translates them
(`modules.storage.compat`) and may not import the application.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

from typing_extensions import Protocol

__all__ = ["ConfigSource", "DatabaseState", "PerformanceMode", "StorageArchitecture"]


class PerformanceMode(str, enum.Enum):
    """How much of the machine storage may use; says the size of the SQL connection pool."""

    ECO = "eco"
    BALANCED = "balanced"
    PERFORMANCE = "performance"


@dataclass(frozen=True)
class StorageArchitecture:
    """Which kinds of store an installation uses, not where they are.

    Attributes:
        performance_mode: Size of the SQL pool.
        conversation_backend: "sqlite", "postgresql" or "mongodb".
        kv_reuse_conversation_store: Whether key-value data lies in the database of the conversations.
        vector_store_adapter: A vector back end: "sqlite", "pgvector", "chroma", "pinecone", "in_memory", "none".
    """

    performance_mode: PerformanceMode = PerformanceMode.BALANCED
    conversation_backend: str = "sqlite"
    kv_reuse_conversation_store: bool = True
    vector_store_adapter: str = "sqlite"


@dataclass(frozen=True)
class DatabaseState:
    """The conversation database as the set-up asks for it.

    Attributes:
        backend: "sqlite", "postgresql" or "mongodb".
        host: Host name; empty for SQLite.
        port: TCP port; None: the usual one.
        database: Name of the database; SQLite: path of its file.
        user: Role to log in as; empty: none.
        password: Its password; never shown.
        dsn: Whole URL. It wins, so the fields above must be empty or agree with it; never shown.
        options: Further connection options in the words of libpq or MongoDB URLs.
    """

    backend: str = "sqlite"
    host: str = ""
    port: Optional[int] = None
    database: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    dsn: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)


class ConfigSource(Protocol):
    """An application's configuration, asked for its blocks by name."""

    def get_config(self, name: str, default: Any = None) -> Any:
        """Return the block called `name`, `default` when there is none."""
        ...
