"""A canary in every secret field: it never shows in a repr, an error, a dump or a pickle's repr (promise P35)."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from modules.storage.settings import SecretUrl, SettingsError, StorageSettings
from modules.storage.settings_sources import settings_table

CANARY = "cAnArY"
SECRETS: dict[str, Any] = {
    "sql": {"dialect": "postgresql", "username": "u", "password": f"{CANARY}@1"},
    "mongo": {"url": f"mongodb://u:{CANARY}@h.example.com/db?authMechanismProperties=AWS:{CANARY}"},
    "vectors": {"pinecone_api_key": f"{CANARY}3", "chroma_auth_token": f"{CANARY}4"},
    "embedder_api_key": f"{CANARY}5",
}
BY_URL: dict[str, Any] = {
    "sql": {"url": f"postgresql://u:{CANARY}%40@h/db?password={CANARY}"},
    "mongo": {"username": "u", "password": CANARY},
}


def test_the_canaries_cover_every_secret_setting() -> None:
    settings = [StorageSettings.from_dict(case) for case in (SECRETS, BY_URL)]
    for row in settings_table(StorageSettings):
        values = [reduce(lambda found, name: getattr(found, name, None), row.path, each) for each in settings]
        marked = row.description.endswith("A secret.")
        assert any(isinstance(value, SecretStr) for value in values) == marked, row.key


@pytest.mark.parametrize("mapping", [SECRETS, BY_URL])
def test_nothing_shows_a_secret(mapping: dict[str, Any]) -> None:
    settings = StorageSettings.from_dict(mapping)
    assert CANARY in json.dumps(settings.to_dict(reveal_secrets=True))
    for each in (settings, settings.sql, settings.mongo, settings.vectors):
        for twin in (each, copy.deepcopy(each), pickle.loads(pickle.dumps(each)), each.model_copy()):
            shown = [repr(twin), str(twin), repr(twin.model_dump()), twin.model_dump_json(), f"{twin}"]
            shown += [repr(twin.to_dict()), repr(list(twin)), repr(twin.__dict__)]
            assert CANARY not in "".join(shown)
    urls = settings.sql.get_safe_url() + settings.mongo.get_safe_url()
    assert CANARY not in urls + repr(settings.sources) + repr(settings._origins)


def test_secret_url_shows_the_harmless_part() -> None:
    shown = repr(StorageSettings.from_dict(BY_URL).sql)
    assert "postgresql://u:***@h/db?password=***" in shown
    assert str(SecretUrl(CANARY)) == "***"
    assert StorageSettings.from_dict(BY_URL).to_dict()["sql"]["password"] == "***"


WRONG: list[dict[str, Any]] = [
    {"sql": {"port": CANARY}},
    {"sql": {"port": CANARY, "password": [CANARY]}},
    {"sql": {"password": {CANARY: 1}}},
    {"sql": {"password": f"{CANARY}\x00"}},
    {"sql": {"password": f"{CANARY}\ud800"}},
    {"sql": {"dialect": CANARY}},
    {"sql": {"host": f"u:{CANARY}@h"}},
    {"sql": {"url": CANARY}},
    {"sql": {"url": f"postgresql://u:{CANARY}@h:99999/db"}},
    {"sql": {"url": f"postgresql://u:12/{CANARY}@h/db"}},
    {"sql": {"url": f"postgresql://u:{CANARY}\ud800@h/db"}},
    {"sql": {"url": f"postgresql://u:{CANARY}@h/db", "port": "x", "nope": CANARY}},
    {"sql": {"url": [CANARY]}},
    {"sql": {"url": f"postgresql:///db?port={CANARY}"}},
    {"sql": {"url": f"postgresql:///db?host=u:{CANARY}@"}},
    {"sql": CANARY},
    {"sql": {"pool": CANARY}},
    {"mongo": {"url": f"mongodb://u:{CANARY}@[h"}},
    {"mongo": {"url": f"mongodb://u:{CANARY}@h", "min_pool_size": 1000}},
    {"vectors": {"pinecone_api_key": [CANARY]}},
    {"use_mongo_for_jobs": CANARY},
    {"nope": CANARY},
]


@pytest.mark.parametrize("mapping", WRONG)
def test_no_error_shows_a_secret(mapping: dict[str, Any]) -> None:
    for build in (
        StorageSettings.from_dict,
        lambda wrong: StorageSettings(**wrong),
        StorageSettings().merged_with,
    ):
        with pytest.raises(SettingsError) as caught:
            build(mapping)
        exc = caught.value
        twin = pickle.loads(pickle.dumps(exc))
        report = "".join(traceback.format_exception(type(exc), exc, None))
        assert CANARY not in report + repr(exc) + str(exc) + repr(exc.__dict__) + repr(twin)
        assert exc.__context__ is None


@pytest.mark.parametrize("mapping", [case for case in WRONG if "\ud800" not in repr(case)])
def test_no_yaml_error_shows_a_secret(mapping: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"storage": mapping}), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_yaml(path)
    assert CANARY not in "".join(traceback.format_exception(SettingsError, caught.value, None))
    assert caught.value.source is not None
    assert caught.value.source.startswith(f"{path}: storage")


def test_every_variable_with_a_wrong_value_hides_it() -> None:
    refused: list[SettingsError] = []
    names: list[str] = []
    for row in settings_table(StorageSettings):
        try:
            StorageSettings.from_env({row.env: f"{CANARY}\x00:"})
        except SettingsError as exc:
            refused.append(exc)
            names.append(f"environment {row.env}")
    assert CANARY not in "".join(repr(exc) + str(exc) for exc in refused)
    assert [exc.source for exc in refused] == names
    assert len(refused) == len(settings_table(StorageSettings))


def test_direct_validation_hides_the_input() -> None:
    with pytest.raises(ValueError, match=r"port") as caught:
        StorageSettings.model_validate({"sql": {"port": CANARY, "password": CANARY}})
    assert CANARY not in str(caught.value) + repr(caught.value)
