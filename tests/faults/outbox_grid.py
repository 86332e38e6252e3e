"""Drives `outbox_zygote`: which cells the grid has, and how one of them is run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from modules.store_common import failpoints
from tests.faults.invariants import assert_whole
from tests.support.postgres import ROOT

__all__ = ["FAULTS", "Cell", "Grid", "first_faults", "second_faults"]

FAULTS = ("kill", "raise", "lost", "hang", "duplicate")
# Where a hang ends by a deadline of the relay's own; elsewhere the process is killed while it hangs.
_HAS_DEADLINE = ("relay.before_apply", "relay.applied")
# What is met when a process begins; elsewhere the child that works has prepared the stores before.
_AT_START = ("relay.starting", "relay.purging")
_CHILD_SECONDS = 60.0
# PROMISES.md, P3; and what is allowed beyond on a busy machine: some seconds (to load and reach a remote store), and more
# than what its own event loop lost, since its threads and the other store's process lose as much.
_CONVERGES_WITHIN_S = 5.0
_SLACK_S = 2.0
_LATE_SHARE = 3.0


class Cell(NamedTuple):
    """A fault at a failpoint, and (P4) a second failpoint at which the process that recovers is killed."""

    point: str
    fault: str
    second: Optional[str] = None


def first_faults() -> List[Cell]:
    """Return all cells of P3."""
    return [Cell(point, fault) for point in failpoints.names for fault in FAULTS]


def second_faults() -> List[Cell]:
    """Return all cells of P4: a kill after COMMIT, and another one during the recovery from it."""
    start = ["relay.starting", "relay.purging"]
    rest = [
        "relay.before_claim",
        "relay.claimed",
        "relay.before_apply",
        "relay.applied",
        "relay.acknowledged",
    ]
    points = ["unit.committed", "relay.claimed", "relay.before_apply", "relay.applied"]
    cells = [Cell(point, "kill", second) for point in points for second in start + rest]
    return cells + [Cell("relay.acknowledged", "kill", second) for second in start]


class Grid:
    """One pair of stores and its zygote.

    Args:
        config: For `outbox_zygote.Pair`.
        directory: For files.
    """

    def __init__(self, config: Dict[str, Any], directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._process: Any = None
        self._made = 0
        #: How often each (failpoint, fault) took effect.
        self.hits: Counter[str] = Counter()
        self.slowest_s = 0.0

    async def __aenter__(self) -> Grid:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
        self._errors = (self._directory / "errors").open("ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.outbox_zygote",
            json.dumps(self._config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        assert (await self._line()) == "ready", self._complaints()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._errors.close()

    async def _line(self) -> str:
        line = await asyncio.wait_for(self._process.stdout.readline(), _CHILD_SECONDS + 30)
        return str(line.decode().strip())

    def _complaints(self) -> str:
        return (self._directory / "errors").read_text(errors="replace")[-3000:]

    async def _child(
        self,
        mode: str,
        tenant: str,
        plan: List[Any],
        *,
        hang: str = "",
        fails: bool = False,
        first: bool = False,
    ) -> Tuple[int, Dict[str, Any], Counter[str]]:
        self._made += 1
        out = self._directory / f"out-{self._made}"
        log = self._directory / f"log-{self._made}"
        order = {
            "mode": mode,
            "tenant": tenant,
            "plan": plan,
            "out": str(out),
            "log": str(log),
            "fails": fails,
            "first": first,
        }
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = int(await self._line())
        ended = asyncio.ensure_future(self._line())
        if hang:
            await self._kill_when_hanging(pid, ended, log, hang)
        status = int(await ended)
        found = json.loads(out.read_text()) if out.exists() else {}
        return status, found, _met(log)

    async def _kill_when_hanging(self, pid: int, ended: asyncio.Future[str], log: Path, point: str) -> None:
        end = time.monotonic() + _CHILD_SECONDS
        while time.monotonic() < end and not ended.done():
            if _met(log)[point]:
                # it hangs; nothing will come of waiting longer
                await asyncio.wait({ended}, timeout=0.2)
                break
            await asyncio.sleep(0.01)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def run(self, cell: Cell) -> None:
        """Run a cell: the fault, then (P4) a second one, then a recovery, and look at the stores."""
        tenant = f"cell-{self._made}"
        where = f"{self._config['target']} {cell}"
        first = cell.point not in _AT_START
        if not first:
            status, found, _ = await self._child("prepare", tenant, [])
            assert status == 0, f"{where}: {self._complaints()}"
            assert_whole(found, where, applied=False)
        fails = cell.point == "unit.compensating"
        plan = [[cell.point, self._action(cell), 1]]
        hang = cell.point if cell.fault == "hang" and cell.point not in _HAS_DEADLINE else ""
        status, work, met = await self._child("work", tenant, plan, hang=hang, fails=fails, first=first)
        assert met[cell.point] >= 1, f"{where}: the place was never met: {met} {self._complaints()}"
        killed = cell.fault == "kill" or bool(hang)
        # a part of the relay that hangs after its work was done does not keep a process from ending
        endings = [0, signal.SIGKILL] if hang.startswith("relay.") else [signal.SIGKILL if killed else 0]
        assert status in endings, f"{where}: ended with {status}: {self._complaints()}"
        if cell.second is not None:
            status, _, met = await self._child("recover", tenant, [[cell.second, "kill", 1]])
            assert status == signal.SIGKILL, f"{where}: the second fault never came: {met}"
        await self._recover(cell, tenant, where, self._expected(cell, work))
        self.hits[f"{cell.point} {cell.fault}" + (f" then {cell.second}" if cell.second else "")] += 1

    async def _recover(self, cell: Cell, tenant: str, where: str, expected: Optional[bool]) -> None:
        status, found, _ = await self._child("recover", tenant, [])
        assert status == 0, f"{where}: {self._complaints()}"
        assert found["converged"], f"{where}: not after the restart: {found}"
        self.slowest_s = max(self.slowest_s, found["seconds"])
        allowed = _CONVERGES_WITHIN_S + _SLACK_S + _LATE_SHARE * found["late"]
        assert found["seconds"] <= allowed, f"{where}: only after {found['seconds']:.1f} s: {found}"
        applied = assert_whole(found["before"], where, applied=expected)
        assert found["resolved"] == applied, f"{where}: resolve() says {found['resolved']}"
        assert (found["told"], found["reconverged"]) == ("committed", True), f"{where}: {found}"
        assert_whole(found["after"], f"{where}, tried again", applied=True)

    def _action(self, cell: Cell) -> str:
        if cell.fault == "duplicate":
            return "twice" if cell.point.startswith("unit.") else "redeliver"
        over_network = self._config["sql"].startswith("postgresql") and cell.point not in _HAS_DEADLINE
        return "cut" if cell.fault == "lost" and over_network else cell.fault

    @staticmethod
    def _expected(cell: Cell, work: Dict[str, Any]) -> Optional[bool]:
        if cell.point == "unit.compensating" and cell.fault == "duplicate":
            return None  # the second one commits
        return {"committed": True, "rolled_back": False}.get(work.get("told", ""))


def _met(log: Path) -> Counter[str]:
    return Counter(log.read_text().split()) if log.exists() else Counter()
