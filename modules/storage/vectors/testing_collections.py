"""The vector contract: lifecycle and collections."""

# ruff: noqa: D102, RUF001, S101

from __future__ import annotations

import random
from typing import Any, Callable, List

import pytest

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError
from modules.storage.vectors.models import DistanceMetric, VectorDocument
from modules.storage.vectors.testing_base import ContractBase, identical, vectors_of
from modules.store_common.errors import InvalidValueError, NotInitializedError, StorageError
from modules.store_common.values import check_identifier

__all__ = ["CollectionContract", "fuzzed_text", "odd_names"]

#: Names that engines stumble over: quoting, case, length limits, reserved words, normalisation forms.
_HARD_NAMES = [
    "a", "A", "ab", "table", "select", "SELECT", "Robert'); DROP TABLE students;--", '"', "'", "''", '""', "`", "\\",
    "a.b", "a/b", "a\\b", "..", ".", "../../etc/passwd", "a b", "a  b", "a_b", "a-b", "a%b", "a%%b", "%s", "%(x)s", "$1",
    ":name", "?", "{0}", "{}", "[a]", "a;b", "--", "/* */", "null", "None", "true", "0", "-1", "1e9", "é", "e\u0301",
    "straße", "STRASSE", "İ", "i", "I", "ı", "名前", "имя", "\U0001f600", "\ue000", "\ue0000", "\ue0001", "\u200b",
    "a\u200bb", "\ufeff", "ﬁ", "fi", "x" * 62, "x" * 63, "x" * 64, "x" * 63 + "y", "x" * 255, "x" * 254 + "y", "é" * 127,
    "é" * 126 + "e", "con", "nul", "pg_class", "sqlite_master", "information_schema", "default", "__default__",
]  # fmt: skip


def odd_names(count: int, seed: int = 1) -> List[str]:
    """Return `count` different identifiers, the hard ones first, then random text."""
    names = dict.fromkeys(_HARD_NAMES)
    chance = random.Random(seed)  # noqa: S311 - a reproducible sample
    alphabet = "aAbBzZ09_-. '\"\\%$;:/éßİ名\u200b\ue000\U0001f600"
    while len(names) < count:
        name = "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 70)))
        try:
            names[check_identifier(name, "a name")] = None
        except InvalidValueError:
            continue
    return list(names)[:count]


class CollectionContract(ContractBase):
    """Lifecycle and collections."""

    async def test_a_new_provider_is_closed_and_says_so(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        provider = make_provider()
        assert not provider.is_initialized
        assert await provider.health_check() is False
        with pytest.raises(NotInitializedError, match="not initialized"):
            await provider.list_collections()
        with pytest.raises(RuntimeError, match="not initialized"):
            await provider.search("docs", [1.0])

    async def test_it_opens_and_closes_more_than_once(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        provider = make_provider()
        await provider.shutdown()
        for _ in range(2):
            await provider.initialize()
            await provider.initialize()
            assert provider.is_initialized
            assert await provider.health_check() is True
            assert await provider.list_collections() == []
            await provider.shutdown()
            await provider.shutdown()
            assert not provider.is_initialized
            with pytest.raises(NotInitializedError):
                await provider.list_collections()

    async def test_what_was_stored_is_there_after_a_new_start(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        first = make_provider()
        if not first.capabilities.persistent:
            pytest.skip("capabilities.persistent is False")
        await first.initialize()
        await first.create_collection("kept", 2, metric=DistanceMetric.DOT_PRODUCT, metadata={"a": [1, None]})
        await first.upsert("kept", [VectorDocument("x", [1, 2], "text", {"k": -0.0}, "space")])
        await self.settle(first)
        await first.shutdown()
        second = make_provider()
        await second.initialize()
        try:
            info = await second.get_collection("kept")
            assert info is not None
            assert (info.dimension, info.metric, info.count) == (2, DistanceMetric.DOT_PRODUCT, 1)
            assert identical(dict(info.metadata), {"a": [1, None]})
            found = await second.get("kept", ["x"], namespace="space")
            assert identical(dict(found[0].metadata), {"k": -0.0})
            assert (await second.search("kept", [1, 1], namespace="space"))[0].score == pytest.approx(3.0)
        finally:
            await second.shutdown()

    async def test_another_instance_sees_the_writes(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        one, two = make_provider(), make_provider()
        if not (one.capabilities.persistent and one.capabilities.immediately_consistent):
            pytest.skip("capabilities: not persistent, or not immediately consistent")
        await one.initialize()
        await two.initialize()
        try:
            await one.create_collection("shared", 2)
            for turn in range(5):
                writer, reader = (one, two) if turn % 2 else (two, one)
                await writer.upsert(
                    "shared", [VectorDocument("same", [1, turn]), VectorDocument(f"n{turn}", [-1, 1])]
                )
                hits = await reader.search("shared", [1, turn], top_k=1, include_vectors=True)
                assert hits[0].document.id == "same"
                assert list(hits[0].document.vector) == [1, turn]
                assert await reader.count("shared") == turn + 2
            assert await one.delete("shared", ["same"]) == 1
            assert "same" not in [hit.document.id for hit in await two.search("shared", [1, 0], top_k=100)]
            await self._check_recreated(one, two)
        finally:
            await one.shutdown()
            await two.shutdown()

    @staticmethod
    async def _check_recreated(one: VectorProvider, two: VectorProvider) -> None:
        """Another instance deleted and made the collection anew, otherwise: no wrong row and no engine error."""
        assert await one.delete_collection("shared") is True
        with pytest.raises(VectorNotFoundError):
            await two.search("shared", [1, 0])
        await two.create_collection("shared", 3)
        assert await two.upsert("shared", [VectorDocument("new", [1, 2, 3])]) == 1
        assert [hit.document.id for hit in await one.search("shared", [1, 2, 3])] == ["new"]

    async def test_a_collection_is_created_read_listed_and_deleted(self, provider: VectorProvider) -> None:
        metadata = {"owner": "ann", "deep": {"list": [1, 1.0, None, True, [], {}]}, "zero": -0.0}
        made = await provider.create_collection("first", 3, metadata=metadata)
        assert (made.name, made.dimension, made.count, made.metric) == ("first", 3, 0, DistanceMetric.COSINE)
        assert made.index_type
        assert identical(dict(made.metadata), metadata)
        read = await provider.get_collection("first")
        assert read == made
        await provider.create_collection("another", 2)
        assert [info.name for info in await provider.list_collections()] == ["another", "first"]
        await provider.upsert(
            "first", [VectorDocument("x", [1, 2, 3]), VectorDocument("y", [1, 2, 3], namespace="n")]
        )
        await self.settle(provider)
        counted = await provider.get_collection("first")
        assert counted is not None
        assert counted.count == 2
        assert {info.name: info.count for info in await provider.list_collections()} == {
            "another": 0,
            "first": 2,
        }
        rebuilt = await provider.rebuild_index("first")
        assert (rebuilt.name, rebuilt.count) == ("first", 2)
        assert await provider.delete_collection("first") is True
        assert await provider.delete_collection("first") is False
        assert await provider.get_collection("first") is None
        assert [info.name for info in await provider.list_collections()] == ["another"]

    async def test_a_taken_name_is_refused_and_nothing_changes(self, provider: VectorProvider) -> None:
        await provider.create_collection("taken", 2, metadata={"n": 1})
        for dimension in (2, 5):
            with pytest.raises(VectorCollectionError):
                await provider.create_collection("taken", dimension)
        found = await provider.get_collection("taken")
        assert found is not None
        assert (found.dimension, dict(found.metadata)) == (2, {"n": 1})

    async def test_a_deleted_collection_leaves_nothing_to_its_successor(
        self, provider: VectorProvider
    ) -> None:
        await provider.create_collection("again", 2)
        await provider.upsert("again", [VectorDocument("x", [1, 0], namespace=space) for space in ("a", "b")])
        await provider.delete_collection("again")
        with pytest.raises(VectorNotFoundError):
            await provider.search("again", [1, 0], namespace="a")
        await provider.create_collection("again", 3, metric=provider.capabilities.metrics[-1])
        assert await provider.count("again") == 0
        assert list(await provider.search("again", [1, 0, 0], namespace="a")) == []
        assert await provider.get("again", ["x"], namespace="b") == []

    async def test_a_collection_that_is_not_there(self, provider: VectorProvider) -> None:
        calls: List[Callable[[], Any]] = [
            lambda: provider.upsert("gone", [VectorDocument("x", [1])]),
            lambda: provider.get("gone", ["x"]),
            lambda: provider.delete("gone", ["x"]),
            lambda: provider.delete_where("gone", {"a": 1}),
            lambda: provider.clear_namespace("gone"),
            lambda: provider.count("gone"),
            lambda: provider.scroll("gone"),
            lambda: provider.search("gone", [1]),
            lambda: provider.search_many("gone", [[1]]),
            lambda: provider.rebuild_index("gone"),
        ]
        for call in calls:
            with pytest.raises(VectorNotFoundError, match="gone"):
                await call()
        with pytest.raises(LookupError):
            await provider.count("gone")

    async def test_unknown_index_options_are_refused(self, provider: VectorProvider) -> None:
        with pytest.raises((InvalidValueError, VectorCollectionError)):
            await provider.create_collection("optioned", 2, index={"no such option": 1})
        assert await provider.list_collections() == []

    async def test_every_metric_that_is_offered_is_kept(self, provider: VectorProvider) -> None:
        for metric in provider.capabilities.metrics:
            await provider.create_collection(metric.value, 2, metric=metric)
            read = await provider.get_collection(metric.value)
            assert read is not None
            assert read.metric is metric

    async def test_odd_names_never_collide(self, provider: VectorProvider) -> None:
        names = odd_names(self.odd_names)
        for position, name in enumerate(names):
            await provider.create_collection(name, 2, metadata={"position": position})
        for position, name in enumerate(names):
            await provider.upsert(name, [VectorDocument("only", [1, position], name)])
        await self.settle(provider)
        listed = await provider.list_collections()
        assert [info.name for info in listed] == sorted(names)
        assert {info.count for info in listed} == {1}
        for position, name in enumerate(names):
            hits = await provider.search(name, [1, 0], top_k=5, include_vectors=True)
            assert [(hit.document.content, float(hit.document.vector[1])) for hit in hits] == [
                (name, position)
            ]
        for name in names[::2]:
            assert await provider.delete_collection(name) is True
        assert [info.name for info in await provider.list_collections()] == sorted(names[1::2])

    async def test_odd_names_as_ids_and_namespaces(self, provider: VectorProvider) -> None:
        names = odd_names(self.odd_names, seed=2)
        await provider.create_collection("odd", 2)
        vectors = vectors_of(len(names), 2)
        await provider.upsert("odd", [VectorDocument(name, vector) for name, vector in zip(names, vectors)])
        for name in names[:60]:
            await provider.upsert("odd", [VectorDocument("here", [1, 1], name)], namespace=name)
        await self.settle(provider)
        assert await self.ids(provider, "odd") == sorted(names)
        assert [document.id for document in await provider.get("odd", names)] == names
        for name in names[:60]:
            hits = await provider.search("odd", [1, 1], namespace=name)
            assert [hit.document.content for hit in hits if hit.document.id == "here"] == [name]
        assert await provider.delete("odd", names[::2]) == len(names[::2])

    async def test_fuzzed_collection_names(self, provider: VectorProvider) -> None:
        """Any text is a name, or is refused; never an engine's error, never another collection's row."""
        chance = random.Random(3)  # noqa: S311 - a reproducible sample
        await provider.create_collection("victim", 2)
        await provider.upsert("victim", [VectorDocument("foreign", [1, 0])])
        for turn in range(self.fuzz):
            name = fuzzed_text(chance)
            if name == "victim":
                continue
            try:
                await provider.create_collection(name, 2)
            except InvalidValueError:
                with pytest.raises(InvalidValueError):
                    await provider.search(name, [1, 0])
                continue
            except StorageError as error:
                raise AssertionError(f"name {turn} ({name!r}) gave {error!r}") from error
            assert list(await provider.search(name, [1, 0])) == []
            assert await provider.delete_collection(name) is True
        await self.settle(provider)
        assert [info.name for info in await provider.list_collections()] == ["victim"]
        assert await provider.count("victim") == 1


_PIECES = [
    "'", '"', "`", "\\", ";", "--", "/*", "*/", "$", "$1", "$gt", "$where", "?", ":x", "%s", "%", "_", "(", ")", "[", "]",
    "{", "}", ".", "..", "/", " OR 1=1", "' OR '1'='1", "; DROP TABLE x", "\x00", "\n", "\x7f", "\ue000", "\u2028",
    "\ud800", "\U0001f600", "é", "a", "Z", "0", "name", "select", "->>", "#>>", "::text", "jsonb", "\t", " ",
]  # fmt: skip


def fuzzed_text(chance: random.Random) -> str:
    """Return text made of what injections are made of; often not a legal identifier."""
    return "".join(chance.choice(_PIECES) for _ in range(chance.randint(0, 9)))
