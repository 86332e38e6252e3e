"""The contract of a vector store, as a test class that anybody can import to prove a provider of their own.

    from modules.storage.vectors.testing import VectorProviderContract

    class TestMyProvider(VectorProviderContract):
        @pytest.fixture
        def make_provider(self, tmp_path):
            return lambda tenancy=None: MyProvider(path=tmp_path, tenancy=tenancy)

It needs pytest, pytest-asyncio and hypothesis. Tests skip by `provider.capabilities` only. `fuzz`, `odd_names` and `crowd`
(class attributes) say how many cases the long tests try; `settle` waits where an engine is not immediately consistent.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "modules.storage.vectors.testing_age",
    "modules.storage.vectors.testing_base",
    "modules.storage.vectors.testing_collections",
    "modules.storage.vectors.testing_documents",
    "modules.storage.vectors.testing_filters",
    "modules.storage.vectors.testing_refusals",
    "modules.storage.vectors.testing_search",
)

from modules.storage.vectors.testing_age import AgeContract  # noqa: E402
from modules.storage.vectors.testing_collections import CollectionContract  # noqa: E402
from modules.storage.vectors.testing_documents import DocumentContract  # noqa: E402
from modules.storage.vectors.testing_filters import FilterContract  # noqa: E402
from modules.storage.vectors.testing_refusals import RefusalContract  # noqa: E402
from modules.storage.vectors.testing_search import SearchContract  # noqa: E402

__all__ = ["VectorProviderContract"]


@pytest.mark.asyncio
class VectorProviderContract(
    CollectionContract, DocumentContract, SearchContract, FilterContract, AgeContract, RefusalContract
):
    """Everything a vector store promises; a subclass overrides the fixture `make_provider`."""
