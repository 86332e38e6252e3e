"""Whatever is sent: no 5xx but those that say "not part of this installation", no status and no body off the document (P37).

A few examples for each operation here, a hundred with ATLAS_TEST_FULL=1.
"""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("ATLAS_TEST_EXAMPLES") or (100 if os.environ.get("ATLAS_TEST_FULL") else 4))
# An event stream does not end, and what is not said about numbers of the wire is not the API's.
STREAMS = "/v1/conversations/{conversation_id}/messages/stream"


@pytest.fixture(scope="module")
def document(live: Any) -> Any:
    return live.client("read").get("/openapi.json").json()


def operations(document: Any) -> Any:
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 25
    return [operation for operation in found if operation.path != STREAMS]


@pytest.mark.timeout(3600 if os.environ.get("ATLAS_TEST_FULL") else 400)
def test_every_answer_is_documented(live: Any, document: Any) -> None:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    headers = {"Authorization": f"Bearer {live.token('admin')}"}
    statuses = set()

    for operation in operations(document):

        @seed(7)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            answer = case.call(base_url=live.url, headers=headers, timeout=30)
            statuses.add(answer.status_code)
            case.validate_response(
                answer, checks=checks + ([not_a_server_error] if answer.status_code != 501 else [])
            )

        attack()
    assert {200, 404, 422} <= statuses


def test_the_document_is_whole(document: Any) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            assert operation.get("description"), where
            refusals = {code for code in operation["responses"] if code >= "400"}
            assert {"500", "503", "504"} <= refusals, where
            if path.startswith("/v1"):
                assert {"401", "403", "422"} <= refusals, where
            for code, answer in operation["responses"].items():
                if code >= "400" and path not in ("/readyz", "/health"):
                    assert list(answer["content"]) == ["application/problem+json"], (where, code)
    text = json.dumps(document)
    assert '"examples"' in text
    assert "HTTPValidationError" not in text


def test_without_a_token_nothing_but_the_probes_answers(live: Any, document: Any) -> None:
    """Every operation of the document, so that a new route cannot be forgotten (P37)."""
    open_paths = {"/livez", "/readyz", "/health"}
    with httpx.Client(base_url=live.url, trust_env=False) as client:
        for path, methods in document["paths"].items():
            at = path
            for name in (
                "conversation_id",
                "message_id",
                "namespace",
                "key",
                "collection",
                "task_id",
                "job_id",
                "name",
                "id",
            ):
                at = at.replace("{" + name + "}", "x")
            for method in methods:
                for headers in (
                    {},
                    {"Authorization": "Bearer atlas_YQ_bm9uZQ"},
                    {"Authorization": "Basic eDp5"},
                ):
                    answer = client.request(method, at, headers=headers, json={} if method != "get" else None)
                    if path in open_paths:
                        assert answer.status_code == 200
                        assert set(answer.json()) == {"status"}
                    else:
                        assert answer.status_code == 401, (method, path, answer.text)
                        assert answer.json()["code"] in ("unauthorized", "token_rejected")
