"""The vector contract: one table of filters over mixed metadata; every provider gives the ids of `filters.matches`."""

# ruff: noqa: A006, D102, E501, S101

from __future__ import annotations

import random
from typing import Any, Dict, List, Tuple

import pytest

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorFilterError
from modules.storage.vectors.filters import matches, parse_filter
from modules.storage.vectors.models import DistanceMetric
from modules.storage.vectors.testing_base import ContractBase
from modules.storage.vectors.testing_collections import fuzzed_text

__all__ = ["BY_HAND", "DOCUMENTS", "FILTERS", "FilterContract"]

#: Mixed on purpose: one key with values of every type, lists, objects, missing keys, odd keys.
DOCUMENTS: Dict[str, Dict[str, Any]] = {
    "n0": {"v": 0, "lang": "en", "year": 2019, "tags": ["a", "b"]},
    "n1": {"v": 1, "lang": "en", "year": 2020, "tags": ["b"]},
    "n1f": {"v": 1.0, "lang": "de", "year": 2021, "tags": []},
    "n9": {"v": 9, "lang": "de", "year": 2022.5},
    "n10": {"v": 10, "lang": "EN", "year": "2020"},
    "n-5": {"v": -5, "lang": "", "year": None},
    "n0.1": {"v": 0.1, "lang": "fr", "year": True},
    "n-0": {"v": -0.0, "lang": "fr", "year": [2019, 2023]},
    "big": {"v": 2**63 - 1, "lang": "zh"},
    "small": {"v": -(2**63), "lang": "zh"},
    "odd": {"v": 2**53 + 1, "lang": "zh"},
    "even": {"v": 2**53, "lang": "zh"},
    "float": {"v": float(2**53), "lang": "zh"},
    "huge": {"v": 1e308},
    "tiny": {"v": 5e-324},
    "s0": {"v": "0"},
    "s1": {"v": "1"},
    "s10": {"v": "10"},
    "s9": {"v": "9"},
    "sA": {"v": "A"},
    "sa": {"v": "a"},
    "se": {"v": "\u00e9"},
    "sed": {"v": "e\u0301"},
    "semoji": {"v": "\U0001f600"},
    "sprivate": {"v": "\ue000"},
    "sprivate0": {"v": "\ue0000"},
    "snul": {"v": "\x00"},
    "sanul": {"v": "a\x00b"},
    "sempty": {"v": ""},
    "strue": {"v": "true"},
    "snull": {"v": "null"},
    "true": {"v": True, "flag": True},
    "false": {"v": False, "flag": False},
    "null": {"v": None, "flag": None},
    "missing": {"flag": 1},
    "empty": {},
    "list": {"v": [1, "a", True, None, 2.5]},
    "list0": {"v": []},
    "listn": {"v": [[1], ["a"], {"a": 1}]},
    "listb": {"v": [False, -1]},
    "obj": {"v": {"a": 1}, "author": {"name": "ann", "age": 30, "tags": ["x", "y"]}},
    "obj0": {"v": {}, "author": {"name": "bob", "age": "30", "tags": "x"}},
    "deep": {"author": {"name": {"first": "ann"}}, "a": {"b": {"c": {"d": [1, 2]}}}},
    "flat": {"author.name": "ann", "author": "ann", "a": [{"b": 1}]},
    "quoted": {'a"b': 1, "a'b": 2, "a\\b": 3, "a b": 4, "": 5, "名": 6, "[0]": 7, "0": 8, "$x": 9, "%": 10, "_": 11},
    "nulkey": {"k\x00": 1, "k\ue000": 2, "k\ue0000": 3},
    "control": {"v": "line\nbreak\ttab\x01", "q": "it's \"quoted\" \\"},
    "outer": {"x": {"$y": 1, "#": 2, "0": "zero", "*": "star"}},
}  # fmt: skip

#: Filters whose ids were worked out by hand from the language's table, not by the code.
BY_HAND: List[Tuple[Dict[str, Any], List[str]]] = [
    ({"v": 1}, ["list", "n1", "n1f"]),
    ({"v": True}, ["list", "true"]),
    ({"v": None}, ["list", "null"]),
    ({"v": "1"}, ["s1"]),
    ({"v": {"$gt": "9"}}, ["control", "list", "sA", "sa", "sanul", "se", "sed", "semoji", "snull", "sprivate", "sprivate0", "strue"]),
    ({"v": {"$lt": 0}}, ["listb", "n-5", "small"]),
    ({"v": {"$gt": 9, "$lt": 11}}, ["n10"]),
    ({"v": {"$gt": 2**53}}, ["big", "huge", "odd"]),
    ({"v": 2**53}, ["even", "float"]),
    ({"v": {"$lt": "0"}}, ["sempty", "snul"]),
    ({"lang": {"$ne": "en"}}, ["big", "even", "float", "n-0", "n-5", "n0.1", "n10", "n1f", "n9", "odd", "small"]),
    ({"lang": {"$nin": ["en", "zh", "fr"]}}, ["n-5", "n10", "n1f", "n9"]),
    ({"flag": {"$exists": True}}, ["false", "missing", "null", "true"]),
    ({"flag": {"$ne": True}}, ["false", "missing", "null"]),
    ({"flag": {"$in": [True, 1]}}, ["missing", "true"]),
    ({"tags": "b"}, ["n0", "n1"]),
    ({"tags": {"$ne": "a"}}, ["n1", "n1f"]),
    ({"tags": {"$nin": []}}, ["n0", "n1", "n1f"]),
    ({"tags": {"$in": []}}, []),
    ({"author.name": "ann"}, ["obj"]),
    ({"author.name.first": "ann"}, ["deep"]),
    ({"author.age": {"$gte": 30}}, ["obj"]),
    ({"a.b.c.d": 2}, ["deep"]),
    ({"a.b": 1}, []),
    ({"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$in": ["a"]}}]}, ["n1"]),
    ({"year": {"$gte": 2022}}, ["n-0", "n9"]),
    ({"$or": [{"year": {"$gt": 2022}}, {"year": {"$lt": "3"}}]}, ["n-0", "n10", "n9"]),
    ({"$and": [{"v": {"$gte": 0}}, {"v": {"$lte": 0}}]}, ["n-0", "n0"]),
    ({"v": {"$gt": "\ue000"}}, ["semoji", "sprivate0"]),
]  # fmt: skip

#: All filters; the expected ids of these come from `matches`.
FILTERS: List[Dict[str, Any]] = [
    *(given for given, _ in BY_HAND),
    {"v": 0}, {"v": -0.0}, {"v": 1.0}, {"v": False}, {"v": ""}, {"v": "a"}, {"v": "A"}, {"v": "true"}, {"v": "null"},
    {"v": "\u00e9"}, {"v": "e\u0301"}, {"v": "\x00"}, {"v": "a\x00b"}, {"v": "\ue000"}, {"v": "\ue0000"}, {"v": "\U0001f600"},
    {"v": 2**63 - 1}, {"v": -(2**63)}, {"v": 2**53 + 1}, {"v": 1e308}, {"v": 5e-324}, {"v": 0.1}, {"v": 2.5},
    {"v": {"$eq": 1}}, {"v": {"$ne": 1}}, {"v": {"$ne": None}}, {"v": {"$ne": True}}, {"v": {"$ne": "a"}}, {"v": {"$ne": ""}},
    {"v": {"$gt": 0}}, {"v": {"$gte": 0}}, {"v": {"$lt": 1}}, {"v": {"$lte": 1}}, {"v": {"$gt": 9}}, {"v": {"$lt": 10}},
    {"v": {"$gte": 2**63 - 1}}, {"v": {"$lte": -(2**63)}}, {"v": {"$gt": 9007199254740992.0}}, {"v": {"$gte": 1e308}},
    {"v": {"$gt": 0, "$lte": 5e-324}}, {"v": {"$gt": ""}}, {"v": {"$gte": ""}}, {"v": {"$lt": "a"}}, {"v": {"$lte": "a"}},
    {"v": {"$gte": "\x00"}}, {"v": {"$lt": "\x00"}}, {"v": {"$gt": "a\x00"}}, {"v": {"$lt": "\ue0000"}}, {"v": {"$gte": "\U0001f600"}},
    {"v": {"$in": [1, "1", None]}}, {"v": {"$in": [True]}}, {"v": {"$in": [0, 0.1, "\x00"]}}, {"v": {"$in": [2**53]}}, {"v": {"$in": []}},
    {"v": {"$nin": [1, "a"]}}, {"v": {"$nin": [None]}}, {"v": {"$nin": [True, False]}}, {"v": {"$nin": []}},
    {"v": {"$exists": True}}, {"v": {"$exists": False}}, {"author.name": {"$exists": True}}, {"author.name.first": {"$exists": False}},
    {"a.b.c.d": {"$exists": True}}, {"no such key": {"$exists": False}}, {"author.tags": "x"}, {"author.tags": {"$ne": "y"}},
    {"author": "ann"}, {"author": {"$ne": "ann"}}, {"author": {"$exists": True}}, {"author.age": "30"}, {"author.age": {"$lt": "4"}},
    {"tags": {"$in": ["a", "c"]}}, {"tags": {"$nin": ["a"]}}, {"tags": {"$gt": "a"}}, {"tags": {"$exists": True}},
    {'a"b': 1}, {"a'b": 2}, {"a\\b": 3}, {"a b": 4}, {"名": 6}, {"[0]": 7}, {"0": 8}, {"%": 10}, {"_": 11}, {"%": {"$exists": True}},
    {"k\x00": 1}, {"k\ue000": {"$gte": 2}}, {"k\ue0000": {"$in": [3]}}, {"x.$y": 1}, {"x.#": 2}, {"x.0": "zero"}, {"x.*": "star"},
    {"q": "it's \"quoted\" \\"}, {"v": "line\nbreak\ttab\x01"}, {"v.a": 1}, {"v.a": {"$exists": True}}, {"v.0": 1},
    {"$not": {"v": 1}}, {"$not": {"v": {"$exists": True}}}, {"$not": {"$not": {"lang": "en"}}}, {"lang": {"$not": {"$in": ["en", "de"]}}},
    {"v": {"$not": {"$gt": 0}}}, {"v": {"$not": 1}}, {"$not": {"lang": {"$ne": "en"}}}, {"$not": {"$or": [{"v": 1}, {"v": None}]}},
    {"$and": [{"lang": "zh"}, {"v": {"$gt": 0}}]}, {"$or": [{"lang": "en"}, {"lang": "de"}]}, {"$or": [{"lang": {"$ne": "en"}}, {"lang": {"$exists": False}}]},
    {"$and": [{"$or": [{"v": 0}, {"v": 1}]}, {"$or": [{"lang": "en"}, {"year": 2021}]}]}, {"$or": [{"$and": [{"v": 9}, {"lang": "de"}]}, {"$not": {"v": {"$exists": True}}}]},
    {"lang": "en", "year": 2020}, {"lang": "en", "v": {"$exists": True}, "tags": {"$in": ["a"]}}, {"lang": {"$ne": "en", "$gt": "e"}},
    {"year": {"$in": [2020, "2020", True]}}, {"year": {"$lte": 2020}}, {"year": {"$ne": 2019}}, {"year": None}, {"year": {"$gt": 2022, "$lt": 2020}},
]  # fmt: skip

_REFUSED: List[Any] = [
    {"$gt": 1}, {"$where": "1"}, {"a": {"$regex": "x"}}, {"a": {"b": 1}}, {"a": {}}, {"a": [1]}, {"a": {"$eq": [1]}},
    {"a": {"$in": 1}}, {"a": {"$in": "abc"}}, {"a": {"$in": [[1]]}}, {"a": {"$in": [{}]}}, {"a": {"$exists": 1}}, {"a": {"$gt": None}},
    {"a": {"$gt": True}}, {"a": {"$lt": [1]}}, {"$and": []}, {"$or": {}}, {"$or": [{}]}, {"$and": [1]}, {"$not": {}}, {"$not": [1]},
    {"": 1}, {".": 1}, {"a.": 1}, {".a": 1}, {"a..b": 1}, {1: 1}, {"a": float("nan")}, {"a": 2**63}, {"a": b"x"}, {"a": "\ud800"},
    {"\ud800": 1}, "a", 5, [("a", 1)], {"a": {"$gt": 1, "$nope": 2}}, {"a": {"$not": {"$nope": 1}}},
]  # fmt: skip


class FilterContract(ContractBase):
    """One filter language."""

    async def test_every_filter_gives_the_ids_of_the_reference(self, provider: VectorProvider) -> None:
        assert len(FILTERS) > 60
        name = await self.collection(provider)
        vectors = await self.fill(provider, name, DOCUMENTS)
        query = [1.0, 0.5, -0.5, 0.25]
        for given in FILTERS:
            tree = parse_filter(given)
            expected = sorted(item for item, metadata in DOCUMENTS.items() if matches(tree, metadata))
            results = await provider.search(name, query, top_k=100, filter=given)
            assert sorted(hit.document.id for hit in results) == expected, f"search {given!r}"
            assert results.complete
            stored = {item: vectors[item] for item in expected}
            self.check_results(provider, results, DistanceMetric.COSINE, query, stored, 100)
            few = await provider.search(name, query, top_k=2, filter=given)
            self.check_results(provider, few, DistanceMetric.COSINE, query, stored, 2)
            assert await provider.count(name, filter=given) == len(expected), f"count {given!r}"
            assert await self.ids(provider, name, filter=given) == expected, f"scroll {given!r}"

    async def test_filters_worked_out_by_hand(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        await self.fill(provider, name, DOCUMENTS)
        for given, expected in BY_HAND:
            results = await provider.search(name, [1, 1, 1, 1], top_k=100, filter=given)
            assert sorted(hit.document.id for hit in results) == expected, repr(given)

    async def test_delete_where_takes_what_the_filter_gives(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        for given in FILTERS[::5]:
            await self.fill(provider, name, DOCUMENTS)
            tree = parse_filter(given)
            kept = sorted(item for item, metadata in DOCUMENTS.items() if not matches(tree, metadata))
            assert await provider.delete_where(name, given) == len(DOCUMENTS) - len(kept), repr(given)
            await self.settle(provider)
            assert await self.ids(provider, name) == kept, repr(given)

    async def test_what_is_no_filter_is_refused(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        await self.fill(provider, name, {"x": {"a": 1}})
        for given in _REFUSED:
            for call in (
                lambda filter: provider.search(name, [1, 1, 1, 1], filter=filter),
                lambda filter: provider.count(name, filter=filter),
                lambda filter: provider.scroll(name, filter=filter),
                lambda filter: provider.delete_where(name, filter),
            ):
                with pytest.raises(VectorFilterError):
                    await call(given)
        nothings: List[Any] = [None, {}]
        for nothing in nothings:
            with pytest.raises(VectorFilterError):
                await provider.delete_where(name, nothing)
        assert await provider.count(name) == 1

    async def test_fuzzed_filter_keys(self, provider: VectorProvider) -> None:
        """Any key is looked up as it is, or refused; never an engine's error, never a foreign row."""
        name = await self.collection(provider)
        chance = random.Random(4)  # noqa: S311 - a reproducible sample
        keys = [fuzzed_text(chance) for _ in range(self.fuzz)]
        usable = [key for key in keys if "\ud800" not in key]
        documents: Dict[str, Dict[str, Any]] = {
            f"d{n:04d}": _nested(key, n) for n, key in enumerate(usable[::10])
        }
        await self.fill(provider, name, documents)
        await provider.upsert(name, [], namespace="elsewhere")
        await self.fill(provider, name, {"foreign": {"a": 1}}, namespace="elsewhere")
        for n, key in enumerate(keys):
            for given in ({key: {"$gte": 0}}, {key: {"$exists": False}}, {key: "' OR 1=1 --"})[n % 3 :][:1]:
                try:
                    tree = parse_filter(given)
                except VectorFilterError:
                    with pytest.raises(VectorFilterError):
                        await provider.search(name, [1, 1, 1, 1], filter=given)
                    continue
                expected = sorted(item for item, metadata in documents.items() if matches(tree, metadata))
                found = await provider.search(name, [1, 1, 1, 1], top_k=1000, filter=given)
                assert sorted(hit.document.id for hit in found) == expected, repr(key)


def _nested(key: str, value: int) -> Dict[str, Any]:
    """Return metadata in which the path `key` is there, when it is a path."""
    made: Any = value
    for part in reversed(key.split(".")):
        made = {part: made}
    return dict(made)
