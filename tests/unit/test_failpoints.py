"""Failpoints: only where the environment allows it, only once, and counted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from modules.store_common import failpoints
from modules.store_common.errors import UnavailableError

NAME = "unit.committed"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATLAS_TEST_FAILPOINTS", "on")
    yield
    failpoints.disarm()


async def test_an_action_happens_at_the_time_planned_and_only_then() -> None:
    failpoints.arm(NAME, "raise", at=2)

    await failpoints.meet(NAME)
    with pytest.raises(failpoints.InjectedError, match=NAME):
        await failpoints.meet(NAME)
    await failpoints.meet(NAME)

    assert failpoints.hits == {NAME: 3}


async def test_a_function_may_be_armed_and_is_awaited() -> None:
    met: List[str] = []

    async def note() -> None:
        met.append("here")

    failpoints.arm(NAME, note)
    await failpoints.meet("relay.claimed")
    assert met == []
    await failpoints.meet(NAME)
    assert met == ["here"]


async def test_lost_and_hang() -> None:
    failpoints.arm(NAME, "lost")
    failpoints.arm("relay.applied", "hang")

    with pytest.raises(UnavailableError):
        await failpoints.meet(NAME)
    hanging = asyncio.ensure_future(failpoints.meet("relay.applied"))
    done, _ = await asyncio.wait({hanging}, timeout=0.05)
    assert not done
    hanging.cancel()
    await asyncio.wait({hanging})
    assert hanging.cancelled()


def test_nothing_can_be_armed_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATLAS_TEST_FAILPOINTS")

    with pytest.raises(RuntimeError, match="for tests"):
        failpoints.arm(NAME, "raise")
    assert not failpoints.armed


@pytest.mark.parametrize(("name", "action"), [("no.such", "raise"), (NAME, "explode")])
def test_what_does_not_exist_is_refused(name: str, action: str) -> None:
    with pytest.raises(LookupError):
        failpoints.arm(name, action)
    assert not failpoints.armed


def test_a_child_is_armed_by_its_environment(child_environment: Dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "met"
    code = f"import asyncio; from modules.store_common import failpoints as f; asyncio.run(f.meet('{NAME}'))"
    armed = {"ATLAS_TEST_FAILPOINTS": f"{NAME}=kill", "ATLAS_TEST_FAILPOINTS_LOG": str(log)}

    child = subprocess.run([sys.executable, "-c", code], env={**child_environment, **armed}, check=False)

    assert child.returncode == -9
    assert log.read_text() == f"{NAME}\n"
    assert os.environ["ATLAS_TEST_FAILPOINTS"] == "on"
