"""Requests and responses of the Pinecone emulator, checked against Pinecone's published OpenAPI files.

The files lie in ../shared/spec/pinecone beside the project, or where ATLAS_TEST_PINECONE_SPEC says. Without them nothing
is checked and `Specification.found` is False. A version that has no file is checked against the newest one before it.
The control plane of 2026-07 (what the SDK 10 speaks) has no file there; its bodies are translated to the older form
first, by the published mapping: schema.fields._values -> dimension, metric; deployment (managed) -> spec.serverless.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped,unused-ignore]
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

__all__ = ["SCHEMA_VERSION", "Specification", "ViolationError", "new_request", "new_response", "old_request"]

#: The first version whose control plane speaks of a schema and a deployment.
SCHEMA_VERSION = "2026-07"
DIRECTORY = Path(
    os.environ.get(
        "ATLAS_TEST_PINECONE_SPEC",
        str(Path(__file__).resolve().parents[2].parent / "shared" / "spec" / "pinecone"),
    )
)
_FILE = re.compile(r"db_(control|data)_(\d{4}-\d{2})\.oas\.yaml")
_METHODS = ("get", "post", "put", "patch", "delete")


class ViolationError(AssertionError):
    """Something that passed through the emulator is not of the specification."""


class _Document:
    """One OpenAPI file."""

    def __init__(self, path: Path) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        with path.open(encoding="utf-8") as file:
            self.content: Dict[str, Any] = yaml.load(file, loader)
        _tightened(self.content)
        resource: Resource[Any] = DRAFT202012.create_resource(self.content)
        self._registry: Registry[Any] = Registry().with_resource("spec", resource)
        self._validators: Dict[str, Draft202012Validator] = {}
        self._routes: List[Tuple[str, re.Pattern[str], str]] = []
        for template, item in self.content["paths"].items():
            pattern = re.compile(re.sub(r"\{[^}]+\}", "[^/]+", template))
            self._routes += [(method, pattern, template) for method in _METHODS if method in item]

    def operation(self, method: str, path: str) -> Tuple[str, Mapping[str, Any]]:
        found = [
            template
            for known, pattern, template in self._routes
            if known == method and pattern.fullmatch(path)
        ]
        if not found:
            raise ViolationError(f"{method} {path} is not in the specification")
        template = min(found, key=lambda item: item.count("{"))
        return template, self.content["paths"][template][method]

    def check(self, pointer: str, value: Any, where: str) -> None:
        validator = self._validators.get(pointer)
        if validator is None:
            validator = Draft202012Validator({"$ref": f"spec#{pointer}"}, registry=self._registry)
            self._validators[pointer] = validator
        error = next(iter(validator.iter_errors(value)), None)
        if error is not None:
            place = "/".join(str(part) for part in error.absolute_path)
            raise ViolationError(f"{where}: at {place!r}: {error.message[:300]}")

    def schema(self, pointer: str) -> Mapping[str, Any]:
        node: Any = self.content
        for part in pointer.strip("/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return self.schema(node["$ref"][1:]) if "$ref" in node else node


def _tightened(node: Any) -> None:
    """The files give arrays minLength and maxLength, by which items are meant, and the values of texts as x-enum."""
    if isinstance(node, dict):
        if "x-enum" in node:
            node["enum"] = node["x-enum"]
        if node.get("type") == "array":
            for wrong, right in (("minLength", "minItems"), ("maxLength", "maxItems")):
                if wrong in node:
                    node[right] = node.pop(wrong)
        for child in node.values():
            _tightened(child)
    elif isinstance(node, list):
        for child in node:
            _tightened(child)


@functools.cache
def _documents() -> Dict[Tuple[str, str], _Document]:
    found: Dict[Tuple[str, str], _Document] = {}
    if DIRECTORY.is_dir():
        for path in sorted(DIRECTORY.iterdir()):
            match = _FILE.fullmatch(path.name)
            if match:
                found[match.group(1), match.group(2)] = _Document(path)
    return found


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


class Specification:
    """The check itself."""

    @property
    def found(self) -> bool:
        """Whether the files are there."""
        return bool(_documents())

    def _document(self, plane: str, version: str) -> Optional[_Document]:
        known = sorted(number for name, number in _documents() if name == plane)
        if not known:
            return None
        older = [number for number in known if number <= version]
        if not older:
            raise ViolationError(f"the version {version!r} is older than every file")
        return _documents()[plane, older[-1]]

    def request(
        self, plane: str, version: str, method: str, path: str, query: Mapping[str, List[str]], body: Any
    ) -> None:
        """Check a request; `body` None: it had none."""
        document = self._document(plane, version)
        if document is None:
            return
        where = f"request {method} {path}"
        template, operation = document.operation(method, path)
        base = f"/paths/{_escaped(template)}/{method}"
        known: Dict[str, Tuple[int, Mapping[str, Any]]] = {
            item["name"]: (place, item)
            for place, item in enumerate(operation.get("parameters", []))
            if item.get("in") == "query"
        }
        for name in query:
            if name not in known:
                raise ViolationError(f"{where}: the parameter {name!r} is not in the specification")
        for name, (place, item) in known.items():
            if name in query:
                document.check(
                    f"{base}/parameters/{place}/schema", _typed(item["schema"], query[name]), where
                )
            elif item.get("required"):
                raise ViolationError(f"{where}: the parameter {name!r} is missing")
        if "requestBody" not in operation:
            if body is not None:
                raise ViolationError(f"{where}: it has a body")
            return
        if body is None:
            raise ViolationError(f"{where}: it has no body")
        pointer = f"{base}/requestBody/content/application~1json/schema"
        document.check(pointer, body, where)
        properties = document.schema(pointer).get("properties", {})
        unknown = sorted(set(body) - set(properties)) if isinstance(body, dict) else []
        if unknown:
            raise ViolationError(f"{where}: the fields {unknown} are not in the specification")

    def response(self, plane: str, version: str, method: str, path: str, status: int, body: Any) -> None:
        """Check a response."""
        document = self._document(plane, version)
        if document is None:
            return
        where = f"response {status} to {method} {path}"
        template, operation = document.operation(method, path)
        responses = operation["responses"]
        name = next((key for key in (str(status), f"{status // 100}XX", "default") if key in responses), None)
        if name is None:
            # the control plane's file lists the statuses one by one; 429 and 503 may always come
            if status in (429, 503) and plane == "control":
                document.check("/components/schemas/ErrorResponse", body, where)
                return
            raise ViolationError(f"{where}: the status is not in the specification")
        content = responses[name].get("content", {})
        if "application/json" in content:
            base = f"/paths/{_escaped(template)}/{method}/responses/{name}"
            document.check(f"{base}/content/application~1json/schema", body, where)
        elif body:
            raise ViolationError(f"{where}: it has a body")


def _typed(schema: Mapping[str, Any], values: List[str]) -> Any:
    if schema.get("type") == "array":
        return values
    if schema.get("type") == "integer":
        return int(values[0])
    return values[0]


def old_request(body: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a create request of 2026-07 in the older form."""
    given = dict(body)
    fields = given.pop("schema")["fields"]
    if list(fields) != ["_values"] or fields["_values"].get("type") != "dense_vector":
        raise ViolationError("the emulator knows indexes with the one dense field _values only")
    deployment = dict(given.pop("deployment"))
    if deployment.pop("deployment_type") != "managed":
        raise ViolationError("the emulator knows managed deployments only")
    dense = fields["_values"]
    if set(dense) - {"type", "dimension", "metric"}:
        raise ViolationError("the dense field has unknown settings")
    return {
        **given,
        "dimension": dense["dimension"],
        "metric": dense["metric"],
        "spec": {"serverless": deployment},
    }


def new_request(model: Mapping[str, Any]) -> Dict[str, Any]:
    """Return an index in the words of 2026-07's schema and deployment."""
    dense = {"type": "dense_vector", "dimension": model["dimension"], "metric": model["metric"]}
    spec = model["spec"]["serverless"]
    return {
        "schema": {"fields": {"_values": dense}},
        "deployment": {"deployment_type": "managed", "cloud": spec["cloud"], "region": spec["region"]},
    }


def new_response(model: Mapping[str, Any]) -> Dict[str, Any]:
    """Return an index model in the form of 2026-07."""
    kept = {
        key: model[key] for key in ("name", "host", "status", "deletion_protection", "tags") if key in model
    }
    return {**kept, **new_request(model), "read_capacity": model["spec"]["serverless"]["read_capacity"]}
