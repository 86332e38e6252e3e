"""The database that the set-up asks for; `modules.storage.compat` translates it to settings and back."""

from __future__ import annotations

from modules.storage.compat_records import DatabaseState

__all__ = ["DatabaseState"]
