"""Where settings come from: the environment, a YAML file, a mapping; merged, the origin of each value kept.

`settings_table()` is the one list of every setting: its dotted path, its environment variable, its default and
its meaning. Loading and docs/configuration.md both follow it. `SettingsError` lives here because all of this
raises it; users import it from `modules.storage.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

from modules.store_common.errors import StorageError

from .settings_references import UnresolvedReferenceError, has_reference, resolve

__all__ = [
    "KeyPath",
    "Layer",
    "Setting",
    "SettingsError",
    "environment_layer",
    "label_of",
    "layer_from_mapping",
    "merge_layers",
    "nearest",
    "settings_table",
    "translate",
    "yaml_layer",
]

KeyPath = tuple[str, ...]

# Section -> prefix of its environment names; the rest of a name is the field's name in capitals ...
_PREFIXES: dict[KeyPath, str] = {
    (): "ATLAS_",
    ("sql",): "ATLAS_SQL_",
    ("sql", "pool"): "ATLAS_SQL_POOL_",
    ("mongo",): "ATLAS_MONGO_",
    ("vectors",): "ATLAS_VECTOR_",
    ("kv",): "ATLAS_KV_",
    ("outbox",): "ATLAS_OUTBOX_",
    ("retention",): "ATLAS_RETENTION_",
    ("server",): "ATLAS_SERVER_",
}
# ... except these, whose short names are the customer's.
_SHORT_NAMES: dict[KeyPath, str] = {
    ("vectors", "collection_name"): "ATLAS_VECTOR_COLLECTION",
    ("vectors", "embedding_dimension"): "ATLAS_VECTOR_DIMENSION",
    ("health_check_interval_seconds",): "ATLAS_HEALTH_CHECK_INTERVAL",
    ("health_check_timeout_seconds",): "ATLAS_HEALTH_CHECK_TIMEOUT",
}
# A variable under one of these that is no setting is an error; other ATLAS_* names belong to others.
_OWNED_PREFIXES = (*(prefix for section, prefix in _PREFIXES.items() if section), "ATLAS_HEALTH_")


class SettingsError(StorageError, ValueError):
    """A setting is unknown, invalid or contradicts another. Never holds the value.

    Attributes:
        key: Dotted path of the setting ("sql.port"), or None when the source itself cannot be read.
        source: Where the value came from ("environment ATLAS_SQL_PORT", "config.yaml: storage.sql.port").
        suggestion: The nearest valid name or value, when one is near.
        reason: What is wrong, without key and source.
    """

    def __init__(
        self,
        reason: str,
        key: Optional[str] = None,
        source: Optional[str] = None,
        suggestion: Optional[str] = None,
    ) -> None:
        super().__init__(reason, key, source, suggestion)
        self.reason, self.key, self.source, self.suggestion = reason, key, source, suggestion

    def __str__(self) -> str:
        where = " from ".join(part for part in (self.key and f"setting {self.key}", self.source) if part)
        hint = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{where or 'settings'}: {self.reason}{hint}"


class Setting(NamedTuple):
    """One row of the table of settings."""

    path: KeyPath
    env: str
    default: Any
    description: str
    verbatim: bool

    @property
    def key(self) -> str:
        """The dotted path, as in YAML below `storage:`."""
        return ".".join(self.path)


class Layer(NamedTuple):
    """The values of one source by path, and the label of each for people."""

    values: dict[KeyPath, Any]
    labels: dict[KeyPath, str]


@cache
def settings_table(model: type[BaseModel], section: KeyPath = ()) -> tuple[Setting, ...]:
    """Every setting of `model`, depth first, in the order of declaration."""
    rows: list[Setting] = []
    for name, field in model.model_fields.items():
        path = (*section, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows.extend(settings_table(field.annotation, path))
            continue
        env = _SHORT_NAMES.get(path, _PREFIXES[section] + name.upper())
        # Blanks around text may be meant; around numbers and names of a choice they never are.
        verbatim = _leaves(field.annotation) <= {str, SecretStr, type(None)}
        default = field.get_default(call_default_factory=True)
        rows.append(Setting(path, env, default, field.description or "", verbatim))
    return tuple(rows)


def _leaves(annotation: Any) -> set[Any]:
    """The plain types inside Optional and Annotated."""
    if get_origin(annotation) is Annotated:
        return _leaves(get_args(annotation)[0])
    parts = get_args(annotation)
    return set().union(*(_leaves(part) for part in parts)) if parts else {annotation}


def nearest(name: str, candidates: Iterable[str]) -> Optional[str]:
    """The candidate most like `name`, or None when none is near."""
    import difflib

    found = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.6)
    return found[0] if found else None


def environment_layer(model: type[BaseModel], environ: Optional[Mapping[str, str]] = None) -> Layer:
    """The settings among the environment variables; a blank value counts as unset.

    Raises:
        SettingsError: A variable under one of our prefixes is no setting.
    """
    names = os.environ if environ is None else environ
    rows = {row.env: row for row in settings_table(model)}
    layer = Layer({}, {})
    for name in sorted(names):
        row = rows.get(name)
        if row is None:
            if name.startswith(_OWNED_PREFIXES):
                raise SettingsError(
                    "there is no such setting; correct or unset it (docs/configuration.md lists all)",
                    source=f"environment {name}",
                    suggestion=nearest(name, rows),
                )
        elif names[name].strip():
            layer.values[row.path] = names[name] if row.verbatim else names[name].strip()
            layer.labels[row.path] = f"environment {name}"
    return layer


def yaml_layer(
    model: type[BaseModel],
    path: Union[str, os.PathLike[str]],
    environ: Optional[Mapping[str, str]] = None,
) -> Layer:
    """The `storage:` block of a YAML file, its `${NAME}` references resolved; a file without one gives an empty layer.

    Args:
        model: The settings model.
        path: The file.
        environ: Where references are looked up; None: the process's own environment.

    Raises:
        SettingsError: The file cannot be read, is not YAML, its block is not a mapping, or a variable is not set.
    """
    import yaml

    # Neither error is chained: YAML errors quote the line, which may hold a password.
    problem = document = None
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        problem = (
            f"the file cannot be read ({exc.strerror or type(exc).__name__}); check its path and permissions"
        )
    except UnicodeDecodeError:
        problem = "the file is not UTF-8 text; save it as UTF-8"
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = f"the file is not valid YAML{place}; correct it there"
    if problem:
        raise SettingsError(problem, source=str(path))
    if not isinstance(document, (Mapping, type(None))):
        raise SettingsError("the file must be a mapping with a `storage:` block", source=str(path))
    layer = layer_from_mapping(model, (document or {}).get("storage"), f"{path}: storage")
    return _resolved(layer, os.environ if environ is None else environ)


def _resolved(layer: Layer, environ: Mapping[str, str]) -> Layer:
    for path, value in layer.values.items():
        if has_reference(value):
            try:
                layer.values[path] = resolve(value, environ)
            except UnresolvedReferenceError as exc:
                raise SettingsError(str(exc), ".".join(path), layer.labels[path]) from None
    return layer


def layer_from_mapping(model: type[BaseModel], mapping: Any, source: str) -> Layer:
    """Flatten a nested mapping; None as a section is empty, None as a value means the default.

    Args:
        model: The settings model, for the names of its sections.
        mapping: Nested mapping, or None.
        source: Label of the whole ("config.yaml: storage"); paths are appended to it.
    """
    layer = Layer({}, {})
    _flatten(layer, mapping, (), source, {row.path[:-1] for row in settings_table(model)})
    return layer


def _flatten(layer: Layer, value: Any, path: KeyPath, source: str, sections: set[KeyPath]) -> None:
    joiner = "." if ": " in source else ": "
    layer.labels[path] = source + joiner + ".".join(path) if path else source
    if isinstance(value, BaseModel) and path in sections:
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if path not in sections:
        layer.values[path] = value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise SettingsError("has a name that is not text", ".".join(path) or None, layer.labels[path])
            _flatten(layer, item, (*path, key), source, sections)
    elif value is not None:
        raise SettingsError("must be a mapping of settings", ".".join(path) or None, layer.labels[path])


def merge_layers(model: type[BaseModel], layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge, later layers over earlier ones.

    Returns:
        The nested mapping for the model, and dotted path -> label of each value in it.
    """
    values: dict[KeyPath, Any] = {}
    labels: dict[str, str] = {}
    rank: dict[KeyPath, int] = {}
    for number, layer in enumerate(layers):
        values.update(layer.values)
        rank.update(dict.fromkeys(layer.values, number))
        labels.update({".".join(path): label for path, label in layer.labels.items()})
    _keep_newest_file_name(values, rank, labels)
    known = {row.path for row in settings_table(model)}
    nested: dict[str, Any] = {}
    for path, value in values.items():
        if value is None and path in known:  # back to the default
            labels.pop(".".join(path), None)
            continue
        target = nested
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = value
    return nested, labels


def label_of(labels: Mapping[str, str], key: Optional[str]) -> Optional[str]:
    """The label of `key`, else of the nearest section around it that has one."""
    name = key or ""
    while name and name not in labels:
        name = name.rpartition(".")[0]
    return labels.get(name)


def _keep_newest_file_name(
    values: dict[KeyPath, Any], rank: Mapping[KeyPath, int], labels: dict[str, str]
) -> None:
    """`sql.path` and `sql.database` both name the SQLite file: the one of the later source is meant."""
    path, database = ("sql", "path"), ("sql", "database")
    dialect = values.get(("sql", "dialect")) or "sqlite"
    text = dialect.value if isinstance(dialect, Enum) else str(dialect)
    if (
        path in rank
        and database in rank
        and rank[path] != rank[database]
        and text.strip().lower() == "sqlite"
    ):
        older = path if rank[path] < rank[database] else database
        del values[older], labels[".".join(older)]


def translate(exc: ValidationError, model: type[BaseModel]) -> SettingsError:
    """Turn pydantic's report, which holds the input, into one line that does not."""
    found = [_translate_one(error, model) for error in exc.errors(include_url=False)]
    first = found[0]
    if len(found) > 1:
        others = ", ".join(dict.fromkeys(str(error.key) for error in found[1:6]))
        first = SettingsError(
            f"{first.reason} (also wrong: {others})", first.key, first.source, first.suggestion
        )
    return first


def _translate_one(error: Any, model: type[BaseModel]) -> SettingsError:
    path = [str(part) for part in error["loc"]]
    context = error.get("ctx") or {}
    inner = context.get("error")
    if isinstance(inner, SettingsError):
        full = ".".join([*path, *([inner.key] if inner.key else [])])
        return SettingsError(inner.reason, full or None, inner.source, inner.suggestion)
    key, kind = ".".join(path) or None, error["type"]
    suggestion: Optional[str] = None
    if kind == "extra_forbidden":
        reason, suggestion = "there is no such setting", nearest(path[-1], model.model_fields)
    elif kind == "enum":
        reason = "must be one of: " + str(context["expected"]).replace("'", "").replace(" or ", ", ")
        suggestion = nearest(str(error["input"]).lower(), reason[len("must be one of: ") :].split(", "))
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        reason = "must be a mapping of settings"
    elif kind == "string_type":
        reason = "must be text; put it in quotes"
    else:
        reason = error["msg"].replace("Value error, ", "").replace("Input should be", "must be")
    return SettingsError(reason, key, None, suggestion)
