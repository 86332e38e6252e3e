"""The in-memory vector store keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest

from modules.storage.vectors.in_memory import InMemoryProvider
from modules.storage.vectors.testing import VectorProviderContract


class TestInMemory(VectorProviderContract):
    @pytest.fixture
    def make_provider(self) -> Any:
        return lambda tenancy=None: InMemoryProvider(tenancy=tenancy)
