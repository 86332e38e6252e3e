"""The process's one manager: made once, never poisoned, never two."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, AsyncIterator, Dict

import pytest

from modules.storage import get_storage_manager, get_storage_manager_sync, reset_storage_manager
from modules.storage.adapters import create_kv_store
from modules.store_common.errors import StorageError, UnavailableError
from tests.support.postgres import ROOT


@pytest.fixture(autouse=True)
async def clean() -> AsyncIterator[None]:
    await reset_storage_manager()
    yield
    await reset_storage_manager()


@pytest.fixture
def file(tmp_path: Path) -> Dict[str, Any]:
    return {"sql": {"path": str(tmp_path / "one.sqlite3")}}


async def test_one_instance_under_100_first_calls(migrated_settings: Any) -> None:
    found = await asyncio.gather(*(get_storage_manager(migrated_settings) for _ in range(100)))
    assert len({id(manager) for manager in found}) == 1
    assert found[0].is_initialized
    assert await get_storage_manager() is found[0]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_one_instance_from_many_threads(file: Any) -> None:
    found = []

    async def first_call() -> None:
        manager = await get_storage_manager(file)
        await manager.kv.increment("n", "calls")
        found.append(manager)

    threads = [threading.Thread(target=lambda: asyncio.run(first_call())) for _ in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join(60) for thread in threads])
    assert len(found) == 8
    assert len({id(manager) for manager in found}) == 1
    assert await found[0].kv.get("n", "calls") == 8


async def test_a_failed_first_call_poisons_nothing(tmp_path: Path, file: Any) -> None:
    (tmp_path / "file").touch()
    wrong = {"sql": {"path": str(tmp_path / "file" / "x.sqlite3")}}
    results = await asyncio.gather(*(get_storage_manager(wrong) for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {UnavailableError}
    manager = await get_storage_manager(file)
    assert manager.is_initialized


async def test_a_cancelled_first_call_makes_no_second_instance(file: Any) -> None:
    first = asyncio.create_task(get_storage_manager(file))
    await asyncio.sleep(0)
    second = asyncio.create_task(get_storage_manager(file))
    await asyncio.sleep(0)
    first.cancel()
    manager = await second
    assert await get_storage_manager(file) is manager
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_cancelled_first_call_does_not_fix_the_settings(file: Any, tmp_path: Path) -> None:
    first = asyncio.create_task(get_storage_manager(file))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    other = {"sql": {"path": str(tmp_path / "two.sqlite3")}}
    assert (await get_storage_manager(other)).get_settings().sql.path.endswith("two.sqlite3")


async def test_other_settings_are_refused(file: Any, tmp_path: Path) -> None:
    manager = await get_storage_manager(file)
    with pytest.raises(StorageError, match="other settings"):
        await get_storage_manager({"sql": {"path": str(tmp_path / "two.sqlite3")}})
    assert await get_storage_manager(file) is manager
    assert await get_storage_manager() is manager
    await reset_storage_manager()
    assert not manager.is_initialized
    other = await get_storage_manager({"sql": {"path": str(tmp_path / "two.sqlite3")}})
    assert other is not manager


async def test_after_its_own_shutdown_it_is_opened_again(file: Any) -> None:
    manager = await get_storage_manager(file)
    await manager.shutdown()
    again = await get_storage_manager(file)
    assert again.is_initialized
    await again.kv.set("n", "k", 1)


async def test_reset_is_harmless_without_one() -> None:
    await reset_storage_manager()
    await asyncio.gather(reset_storage_manager(), reset_storage_manager())


async def test_the_sync_form_is_refused_on_a_loop(file: Any) -> None:
    with pytest.raises(StorageError, match="event loop"):
        get_storage_manager_sync(file)
    manager = await get_storage_manager(file)  # nothing was left behind
    assert manager.is_initialized


def _sync_work(file: Any) -> Any:
    manager = get_storage_manager_sync(file)
    assert get_storage_manager_sync() is manager
    kv = create_kv_store(manager)
    kv.set("n", "k", {"a": 1})
    return kv.get("n", "k")


async def test_the_sync_form_from_a_thread(file: Any) -> None:
    assert await asyncio.to_thread(_sync_work, file) == {"a": 1}
    assert await (await get_storage_manager()).kv.get("n", "k") == {"a": 1}


async def test_the_sync_form_after_a_failure(file: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def work() -> Any:
        with pytest.raises(UnavailableError):
            get_storage_manager_sync({"sql": {"path": str(tmp_path / "file" / "x.sqlite3")}})
        return _sync_work(file)

    assert await asyncio.to_thread(work) == {"a": 1}


async def test_a_script_that_just_ends_ends(file: Any, child_environment: Dict[str, str]) -> None:
    """No shutdown, no reset: the interpreter must not wait for our threads, and what was written is there."""
    script = (
        "import sys\n"
        "from modules.storage import get_storage_manager_sync, create_kv_store\n"
        "kv = create_kv_store(get_storage_manager_sync({'sql': {'path': sys.argv[1]}}))\n"
        "kv.set('n', 'k', 1)\n"
        "print(kv.get('n', 'k'))\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "default", "-c", script, file["sql"]["path"]],
        cwd=ROOT,
        env={key: value for key, value in child_environment.items() if key != "PYTHONWARNINGS"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "1\n", done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr, done.stderr
    assert await (await get_storage_manager(file)).kv.get("n", "k") == 1
