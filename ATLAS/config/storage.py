"""The kinds of store an installation uses; `modules.storage.compat` translates them to settings and back."""

from __future__ import annotations

from modules.storage.compat_records import PerformanceMode, StorageArchitecture

__all__ = ["PerformanceMode", "StorageArchitecture"]
