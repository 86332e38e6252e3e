"""Handlers: registering, loading modules of them, and what is kept of what they raise."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from modules.orchestration.errors import (
    HandlerNameTakenError,
    HandlerNotFoundError,
    HandlersNotLoadedError,
)
from modules.orchestration.faults import LONGEST_TRACEBACK, describe, masked, message_of
from modules.orchestration.handlers import HandlerRegistry, default_handlers, handler, load_handlers
from modules.store_common.errors import InvalidValueError


async def waits(job: Any) -> None: ...


def blocks(job: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, job: Any) -> None: ...


def test_a_registry_knows_what_runs_where() -> None:
    registry = HandlerRegistry()
    registry.add("a", waits)
    registry.add("b", blocks)
    registry.add("c", functools.partial(functools.partial(waits)))
    registry.add("d", AsyncCallable())

    assert registry.names == ["a", "b", "c", "d"]
    assert [registry.require(name).is_async for name in registry.names] == [True, False, True, True]
    assert len(registry) == 4
    assert registry.get("e") is None
    with pytest.raises(HandlerNotFoundError, match="'e'"):
        registry.require("e")


def test_a_name_is_taken_once() -> None:
    registry = HandlerRegistry()
    registry.add("a", waits)
    registry.add("a", waits)
    with pytest.raises(HandlerNameTakenError, match=r"test_handlers\.waits"):
        registry.add("a", blocks)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 300])
def test_a_name_is_an_identifier(name: str) -> None:
    with pytest.raises(InvalidValueError):
        HandlerRegistry().handler(name)(waits)
    with pytest.raises(InvalidValueError):
        HandlerRegistry().add("a", None)  # type: ignore[arg-type]


def test_the_decorator_registers_for_the_process_and_leaves_the_function_as_it_is() -> None:
    decorated = handler("tests.unit.waits")(waits)

    assert decorated is waits
    assert default_handlers.require("tests.unit.waits").function is waits


def test_modules_are_loaded_from_the_directory(tmp_path: Path) -> None:
    package = tmp_path / "atlas_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "handlers.py").write_text(
        "from modules.orchestration import handler\n@handler('tests.loaded')\nasync def f(job): ...\n"
    )
    path = list(sys.path)
    try:
        load_handlers(["atlas_test_package.handlers"], str(tmp_path))
    finally:
        sys.path[:] = path

    assert default_handlers.get("tests.loaded") is not None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("atlas_no_such_module", None, "there is no module 'atlas_no_such_module'"),
        ("atlas_no_such_package.handlers", None, "there is no module"),
        ("../etc", None, "no name of a module"),
        ("", None, "no name of a module"),
        ("atlas_needs", "import atlas_absent_library", "needs 'atlas_absent_library'"),
        ("atlas_broken", "raise RuntimeError('password=hunter2')", "raised RuntimeError"),
        ("atlas_syntax", "def", "raised SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_said(tmp_path: Path, name: str, text: Any, message: str) -> None:
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    path = list(sys.path)
    try:
        with pytest.raises(HandlersNotLoadedError, match=message) as caught:
            load_handlers([name], str(tmp_path))
    finally:
        sys.path[:] = path

    assert "hunter2" not in str(caught.value)


SECRETS = [
    "postgresql://joe:hunter2@db.example.org/x",
    "could not connect to redis://:hunter2@cache:6379/0",
    "amqp://user:hun/ter2@host",
    "password=hunter2",
    "connection failed: host=db password='hunter2' user=joe",
    'body was {"api_key": "hunter2", "model": "x"}',
    "GET https://api.example.org/?token=hunter2&x=1",
    "Authorization: Bearer hunter2hunter2",
    "headers: {'Authorization': 'Basic aHVudGVyMjpodW50ZXIy'}",
    "invalid key sk-proj-hunter2hunter2hunter2",
    "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.aHVudGVyMg",
    "SECRET: hunter2",
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    shown = masked(text)

    assert "***" in shown
    for secret in ("hunter2", "hun/ter2", "aHVudGVyMjpodW50ZXIy", "eyJzdWIi"):
        assert secret not in shown


@pytest.mark.parametrize(
    "text",
    ["there is no job 'a'", "see https://example.org/a:b@c ... no", "a tokenizer of 3 tokens", "keys: 3"],
)
def test_plain_text_stays(text: str) -> None:
    assert masked(text).replace("***", "") in (text, masked(text))
    if "https" not in text:
        assert masked(text) == text


def test_a_traceback_is_kept_with_its_causes_and_without_secrets() -> None:
    password = "hunter2"

    def connect() -> None:
        raise ConnectionError(f"postgresql://joe:{password}@db/x refused")

    try:
        try:
            connect()
        except ConnectionError as exc:
            raise ValueError("cannot charge") from exc
    except ValueError as exc:
        text = describe(exc)

    assert "in connect" in text
    assert "ConnectionError: postgresql://joe:***@db/x refused" in text
    assert text.rstrip().endswith("ValueError: cannot charge")
    assert password not in text.replace('password = "hunter2"', "")


def test_it_is_bounded_and_storable() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 100_000 + "\udcff")
        deep(n - 1)

    with pytest.raises(ValueError) as caught:
        deep(300)
    assert len(describe(caught.value)) <= LONGEST_TRACEBACK + 10
    assert len(message_of(caught.value)) <= 4000
    describe(caught.value).encode()
    message_of(ValueError("\udcff")).encode()
    assert "RuntimeError" in message_of(OddError())


@pytest.mark.parametrize(
    "text",
    ["x" * 80_000, "a." * 40_000, "https://a:" * 8_000, "password " * 9_000, "eyJ" * 27_000, "://:" * 20_000],
)
def test_masking_stays_linear(text: str) -> None:
    # quadratic search takes minutes here: the test's own time-out would tell
    assert len(masked(text)) <= len(text) + 10_000
