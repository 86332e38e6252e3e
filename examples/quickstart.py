"""The example of the README: run it as it is; it makes ./.atlas/ and needs no server."""

from __future__ import annotations

import asyncio

from modules.storage import StorageManager


async def main() -> None:
    async with StorageManager() as storage:
        chat = await storage.conversations.create_conversation(title="Trip to Lisbon")
        await storage.conversations.add_message(chat.id, role="user", content="Find me a quiet hotel.")
        await storage.conversations.add_message(chat.id, role="assistant", content="How about Alfama?")

        for message in await storage.conversations.load_recent_messages(chat.id, limit=10):
            print(message.role, "-", message.content)
        for hit in await storage.conversations.search("quiet hotels"):
            print("found:", hit.snippet)

        async with storage.unit_of_work() as uow:  # both, or neither
            await uow.conversations.add_message(chat.id, role="user", content="Book it.")
            await uow.kv.set("bookings", chat.id, {"hotel": "Alfama", "nights": 3})
        print(await storage.kv.get("bookings", chat.id))


if __name__ == "__main__":
    asyncio.run(main())
