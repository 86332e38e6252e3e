"""The key-value store by the names that callers use."""

from __future__ import annotations

from modules.Tools.Base_Tools.kv_maintenance import KeyValueMaintenance
from modules.Tools.Base_Tools.kv_repository import ABSENT, KeyValueStore

__all__ = ["ABSENT", "KeyValueMaintenance", "KeyValueStore"]
