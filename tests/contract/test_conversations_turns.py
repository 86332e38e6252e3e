"""Contract of the conversation store: turns. Runs on every backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modules.conversation_store.errors import ConversationLeaseLostError, ConversationNotFoundError
from modules.conversation_store.maintenance import ConversationMaintenance
from modules.store_common.deadlines import deadline
from modules.store_common.errors import DeadlineExceededError, IdempotencyConflictError, StorageError
from tests.support import backends

backend = backends.backend


@pytest.fixture
async def store(storage: Any) -> Any:
    await storage.conversations.create_conversation("c1")
    return storage.conversations


async def last(store: Any) -> Any:
    return (await store.load_recent_messages("c1", 1))[0]


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Poll until `condition()` gives true."""

    async def poll() -> None:
        while not await condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), seconds)


class TestTurn:
    async def test_the_user_is_stored_first_and_the_reply_at_the_end(self, store: Any) -> None:
        turn = store.turn(
            "c1", user_message="Hello", user={"author_id": "u"}, reply={"name": "Bot", "metadata": {"m": 1}}
        )
        async with turn:
            stored = await store.load_recent_messages("c1")
            assert [(m.role, m.status, m.content) for m in stored] == [
                ("user", "complete", "Hello"), ("assistant", "streaming", "")
            ]  # fmt: skip
            await turn.write("umbrella ")
            await turn.flush()
            assert (await last(store)).content == "umbrella "
            assert await store.search("umbrella") == []
            await turn.write("stand")
        reply = await last(store)
        assert (reply.status, reply.content, reply.name, reply.metadata) == (
            "complete",
            "umbrella stand",
            "Bot",
            {"m": 1},
        )
        assert turn.message == reply
        assert len(await store.search("umbrella")) == 1
        assert await store.recover_turns() == 0

    async def test_parts_are_stored_by_size_and_by_time(self, store: Any) -> None:
        async with store.turn("c1", flush_characters=10, flush_seconds=60) as turn:
            await turn.write("12345")
            assert (await last(store)).content == ""
            await turn.write("67890")
            assert (await last(store)).content == "1234567890"
        async with store.turn("c1", flush_seconds=0.01) as turn:
            await turn.write("soon")

            async def stored() -> bool:
                return bool((await last(store)).content == "soon")

            await until(stored)

    async def test_an_error_marks_it_failed_and_passes(self, store: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            async with store.turn("c1", user_message="x") as turn:
                await turn.write("half")
                raise ZeroDivisionError
        assert ((await last(store)).status, (await last(store)).content) == ("failed", "half")

    async def test_cancellation_marks_it_interrupted_and_passes(self, store: Any) -> None:
        begun = asyncio.Event()

        async def work() -> None:
            async with store.turn("c1") as turn:
                await turn.write("half")
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ((await last(store)).status, (await last(store)).content) == ("interrupted", "half")

    async def test_an_outer_deadline_that_passed_does_not_lose_the_reply(self, store: Any) -> None:
        async def late(seconds: float) -> bool:
            """Let the deadline pass inside a turn; False when it passed before the turn had begun."""
            begun = False
            try:
                with deadline(seconds):
                    async with store.turn("c1") as turn:
                        begun = True
                        await turn.write("late")
                        loop = asyncio.get_running_loop()
                        until_s = loop.time() + 1.25 * seconds

                        async def passed() -> bool:
                            return loop.time() > until_s

                        await until(passed)
            except DeadlineExceededError:
                if begun:
                    raise
            return begun

        seconds = 0.2
        while not await late(seconds):  # on a busy machine a turn takes long to begin
            seconds *= 2
        assert ((await last(store)).status, (await last(store)).content) == ("complete", "late")

    async def test_content_and_metadata_of_ones_own(self, store: Any) -> None:
        async with store.turn("c1") as turn:
            await turn.write("words")
            turn.set_content([{"type": "text", "text": "umbrella"}])
            turn.set_metadata({"tokens": 3})
        assert (await last(store)).content == [{"type": "text", "text": "umbrella"}]
        assert (await last(store)).metadata == {"tokens": 3}
        assert len(await store.search("umbrella")) == 1

    async def test_a_turn_begins_once_for_a_key(self, store: Any) -> None:
        async with store.turn("c1", user_message="x", user={"client_message_id": "k"}):
            pass
        with pytest.raises(IdempotencyConflictError):
            async with store.turn("c1", user_message="x", user={"client_message_id": "k"}):
                pass
        assert len(await store.load_recent_messages("c1")) == 2
        with pytest.raises(ConversationNotFoundError):
            async with store.turn("none", user_message="x"):
                pass

    async def test_used_wrongly(self, store: Any) -> None:
        turn = store.turn("c1")
        with pytest.raises(StorageError):
            await turn.write("early")
        async with turn:
            pass
        with pytest.raises(StorageError):
            await turn.write("late")
        with pytest.raises(StorageError):
            await turn.__aenter__()


class TestRecovery:
    async def test_a_dead_turn_is_interrupted_and_its_writer_refused(self, store: Any, storage: Any) -> None:
        live = store.turn("c1", lease_seconds=60)
        await live.__aenter__()
        dead = store.turn("c1", lease_seconds=0.001, flush_seconds=600)
        await dead.__aenter__()
        dead._ticker.cancel()  # its process is gone
        await dead.write("what was written")
        await dead.flush()
        maintenance = ConversationMaintenance(storage.conversations._executor)

        async def found() -> bool:
            return bool((await last(store)).status == "interrupted" or await maintenance.recover_turns())

        await until(found)
        assert ((await last(store)).status, (await last(store)).content) == (
            "interrupted",
            "what was written",
        )
        with pytest.raises(ConversationLeaseLostError):
            await dead.flush()
        with pytest.raises(ConversationLeaseLostError):
            await dead.__aexit__(None, None, None)
        assert (await last(store)).status == "interrupted"
        await live.write("alive")
        await live.__aexit__(None, None, None)
        assert [m.status for m in await store.load_recent_messages("c1")] == ["complete", "interrupted"]

    async def test_a_silent_turn_keeps_its_lease(self, store: Any) -> None:
        loop = asyncio.get_running_loop()

        async def is_kept(lease_seconds: float) -> bool:
            """Be silent for longer than the lease; False when the machine stood still meanwhile, and it was lost."""
            turn = store.turn("c1", lease_seconds=lease_seconds, flush_seconds=60)
            await turn.__aenter__()
            began = looked = loop.time()
            longest = 0.0
            while looked < began + 1.7 * lease_seconds:
                lost = await store.recover_turns()
                longest, looked = max(longest, loop.time() - looked), loop.time()
                if lost:
                    assert longest > lease_seconds / 6, "nothing kept it from giving a sign of life"
                    with pytest.raises(ConversationLeaseLostError):
                        await turn.__aexit__(None, None, None)
                    return False
                await asyncio.sleep(0.01)
            await turn.write("x")
            await turn.__aexit__(None, None, None)
            return True

        lease_seconds = 1.5
        while not await is_kept(lease_seconds):
            lease_seconds *= 2
        assert (await last(store)).status == "complete"
