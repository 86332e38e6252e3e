"""Every operation of a store that MongoDB holds has a form there, but for those that are left out on purpose."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Dict, Iterator, Set, Tuple

import pytest

import modules.conversation_store
import modules.job_store
import modules.Tools.Base_Tools
from modules.conversation_store.mongo_documents import metadata_terms
from modules.conversation_store.mongo_repository import CONVERSATION_FORMS
from modules.conversation_store.stemming import stem, stems_of, words_of
from modules.job_store.mongo_repository import JOB_FORMS
from modules.storage.documents import key_of
from modules.storage.operations import Operation
from modules.Tools.Base_Tools.kv_mongo_repository import KEY_VALUE_FORMS

#: Search by meaning is refused where conversations are in MongoDB. A claim is `claim_in_turn` there; the others are
#: PostgreSQL's three parts of it.
_LEFT_OUT: Dict[Any, Set[str]] = {
    modules.conversation_store: {"messages_at"},
    modules.job_store: {"claim_plain", "claim_keyed", "claim_limited"},
}


def _operations(package: Any) -> Iterator[Tuple[str, str, Operation[Any, Any]]]:
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if isinstance(value, Operation) and value.function.__module__ == module.__name__:
                yield found.name.rpartition(".")[2], name, value


@pytest.mark.parametrize(
    ("package", "forms"),
    [
        (modules.conversation_store, CONVERSATION_FORMS),
        (modules.job_store, JOB_FORMS),
        (modules.Tools.Base_Tools, KEY_VALUE_FORMS),
    ],
    ids=["conversations", "jobs", "kv"],
)
def test_every_operation_has_a_form(package: Any, forms: Any) -> None:
    missing: Set[str] = {
        name
        for room, name, operation in _operations(package)
        if room != "backlog" and forms.get(operation) is None
    }
    assert missing == _LEFT_OUT.get(package, set())
    assert len(forms.operations) > 15


@pytest.mark.parametrize(
    "forms", [CONVERSATION_FORMS, JOB_FORMS, KEY_VALUE_FORMS], ids=["conversations", "jobs", "kv"]
)
def test_the_tenant_leads_every_index(forms: Any) -> None:
    # these are texts that begin with the tenant; the others are of work across tenants
    across = {"uq_client_key", "uq_name", "uq_idempotency", "uq_unique", "ix_aliases"}
    across |= {
        "ix_turns",
        "ix_noted",
        "ix_created",
        "ix_batch",
        "ix_claim",
        "ix_due",
        "ix_leases",
        "ix_results",
    }
    across |= {"ix_made", "ix_firing", "ix_seen"}
    assert {index.name for index in forms.indexes if index.keys[0][0] != "t"} <= across
    assert len({(index.collection, index.name) for index in forms.indexes}) == len(forms.indexes)


def test_keys_sort_as_their_parts_do() -> None:
    parts = [("a", "b"), ("a", "b c"), ("a b", "a"), ("a", "b", "x"), ("ab", "a")]
    assert sorted(parts) == sorted(parts, key=lambda item: key_of(*item))


def test_metadata_terms_compare_as_json_does() -> None:
    assert metadata_terms({"a": 1}) == metadata_terms({"a": 1.0})
    assert metadata_terms({"a": -0.0}) == metadata_terms({"a": 0})
    assert metadata_terms({"a": True}) != metadata_terms({"a": 1})
    assert metadata_terms({"a": None}) != metadata_terms({"a": "None"})
    assert metadata_terms({"a": {"b": 1}}) != metadata_terms({"a.b": 1})
    assert metadata_terms({"a": [1]}) == []


def test_stems() -> None:
    words = "caresses ponies agreed hopping relational formalize goodness adjustable probate controll x é1"
    assert [stem(word) for word in words.split()] == [
        "caress", "poni", "agre", "hop", "relat", "formal", "good", "adjust", "probat", "control", "x", "é1",
    ]  # fmt: skip
    assert words_of("Ünïcode, it's 2 WORDS_here") == ["unicode", "it", "s", "2", "words", "here"]
    assert stems_of(["running"], "simple") == ["running"]
