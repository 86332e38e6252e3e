"""A worker process for the fault tests: `python -m tests.faults.worker_child URL EFFECTS [NAME=VALUE ...]`.

Its handler "effect" appends "job fence worker" to the file EFFECTS in one write, at its begin and at its end: what a handler
does to the world, for the test to count. Options: lease, heartbeat, grace, concurrency, name, kind (quick, slow, stubborn,
blocking); cancel and store: how long it may wait for handlers and the database when it stops, beyond what is promised.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from typing import Any, Dict

from modules.orchestration import HandlerRegistry, JobContext, Scheduler, Worker, crew, signals
from modules.orchestration.signals import StopSignals
from modules.storage.manager import StorageManager


def _options() -> Dict[str, str]:
    return dict(word.split("=", 1) for word in sys.argv[3:])


def _be_patient(cancel_s: float, store_s: float) -> None:
    """Take longer than promised on a machine that stands still, rather than leave something undone; 0: no longer."""
    crew._CANCEL_S = max(crew._CANCEL_S, cancel_s)
    crew._STORE_S = max(crew._STORE_S, store_s)
    signals._OVERTIME_S += cancel_s + store_s


def _block() -> None:
    time.sleep(0.05)


def _settings(url: str) -> Dict[str, Any]:
    if url.startswith("mongodb"):
        return {"sql": {"url": "sqlite:///:memory:"}, "mongo": {"url": url}, "use_mongo_for_jobs": True}
    return {"sql": {"url": url, "auto_migrate": False}}


def handlers_of(kind: str, effects: int, name: str) -> HandlerRegistry:
    handlers = HandlerRegistry()

    def note(what: str, job: JobContext) -> None:
        os.write(effects, f"{what} {job.id} {job.claim.fence} {name}\n".encode())

    @handlers.handler("effect")
    async def effect(job: JobContext) -> Any:
        note("begin", job)
        if kind == "slow":
            await asyncio.sleep(0.3)
        elif kind == "quick":
            await asyncio.sleep(0.002)
        elif kind == "stubborn":
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    note("ignored", job)
        elif kind == "blocking":
            while True:  # the loop hears nothing any more
                _block()
        note("end", job)
        return job.claim.fence

    @handlers.handler("thread")
    def thread(job: JobContext) -> None:
        note("begin", job)
        while kind == "stubborn":
            time.sleep(0.05)
        note("end", job)

    return handlers


async def main() -> int:
    url, path = sys.argv[1:3]
    options = _options()
    effects = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    name = options.get("name", f"w{os.getpid()}")
    _be_patient(float(options.get("cancel", "0")), float(options.get("store", "0")))
    grace = float(options.get("grace", "5"))
    async with StorageManager(_settings(url)) as storage:
        if options.get("kind") == "scheduler":
            scheduler = Scheduler(storage, poll_s=0.2)
            with StopSignals(scheduler.stop, grace):
                print("ready", flush=True)
                await scheduler.run()
            left = 0
        else:
            times: Dict[str, Any] = {
                f"{word}_s": float(options[word]) for word in ("lease", "heartbeat") if word in options
            }
            worker = Worker(
                storage,
                handlers_of(options.get("kind", "quick"), effects, name),
                concurrency=int(options.get("concurrency", "8")),
                grace_s=grace,
                name=name,
                **times,
            )

            def stop() -> None:
                os.write(effects, b"signal - - -\n")
                worker.stop()

            with StopSignals(stop, grace):
                print("ready", flush=True)
                counted = await worker.run()
            left = worker.left_behind
            print(json.dumps({**vars(counted), "left_behind": left}), flush=True)
    if left:
        sys.stdout.flush()
        os._exit(1)
    tasks = [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(2)  # one that has said its last word needs a moment to end
    threads = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    print(json.dumps({"threads": threads, "tasks": tasks}), flush=True)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    sys.exit(asyncio.run(main()))
