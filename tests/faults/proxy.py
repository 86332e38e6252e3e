"""A TCP proxy that misbehaves on command, with toxiproxy's vocabulary.

    async with Proxy(host, port) as proxy:
        proxy.latency(0.05)        each chunk later by so many seconds
        proxy.timeout()            swallow every byte; connections stay open and silent
        proxy.slicer(1)            pass on at most so many bytes at a time
        proxy.limit_data(1000)     close a connection after so many bytes from the server
        proxy.reset()              answer everything with a TCP reset, those open now included
        proxy.down()               refuse connections and close those that are open
        proxy.drop_reply(b"COMMIT")    let the request through, swallow its answer, then reset: the outcome is unknown
        proxy.heal()               none of the above

`proxy.hits` counts how often each fault took effect, so that a test can tell that it tested something. Source of the
names: https://github.com/Shopify/toxiproxy, "Toxics".
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from typing import Any, Callable, Optional, Set, Tuple

__all__ = ["Proxy"]

_CHUNK = 65536


class _Link:
    """One client connection and its connection to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.received = 0
        self.dropping = False

    def reset(self) -> None:
        """Close both sides; the client sees ECONNRESET."""
        raw: Optional[socket.socket] = self.client.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.transport.abort()
        self.server.transport.abort()

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to `host:port`."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = host, port
        self._listener: Optional[asyncio.AbstractServer] = None
        self._links: Set[_Link] = set()
        self._tasks: Set[asyncio.Task[Any]] = set()
        self._port = 0
        self.hits: Counter[str] = Counter()
        self.accepted = 0
        self.heal()

    @property
    def port(self) -> int:
        return self._port

    @property
    def open_links(self) -> int:
        return len(self._links)

    async def __aenter__(self) -> Proxy:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_listening()
        for link in list(self._links):
            link.reset()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # --- faults ---------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Behave (links that were silenced stay silent: their bytes are lost)."""
        self._latency_s = 0.0
        self._swallow = False
        self._slice = 0
        self._limit = 0
        self._reset = False
        self._marker = b""

    def latency(self, seconds: float) -> None:
        self._latency_s = seconds

    def timeout(self) -> None:
        self._swallow = True

    def slicer(self, size: int) -> None:
        self._slice = size

    def limit_data(self, size: int) -> None:
        self._limit = size

    def reset(self) -> None:
        self._reset = True
        for link in list(self._links):
            self.hits["reset"] += 1
            link.reset()

    def drop_reply(self, marker: bytes) -> None:
        self._marker = marker

    async def down(self) -> None:
        await self._stop_listening()
        for link in list(self._links):
            self.hits["down"] += 1
            link.close()

    async def up(self) -> None:
        await self._listen()

    # --- plumbing -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a task of ours, not one that asyncio.start_server makes: that logs an error when it is cancelled
        self.accepted += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        if self._listener is None:  # it was accepted, and is refused meanwhile
            self.hits["down"] += 1
            writer.transport.abort()
            upstream.transport.abort()
            return
        link = _Link(writer, upstream)
        self._links.add(link)
        if self._reset:
            self.hits["reset"] += 1
            link.reset()
        pumps = [
            asyncio.ensure_future(self._pump(reader, upstream, link, self._from_client)),
            asyncio.ensure_future(self._pump(upstream_reader, writer, link, self._from_server)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._links.discard(link)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: _Link,
        look: Callable[[_Link, bytes], Tuple[bytes, bool]],
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(self._slice or _CHUNK)
                if not data:
                    return
                if self._latency_s:
                    self.hits["latency"] += 1
                    await asyncio.sleep(self._latency_s)
                if self._slice:
                    self.hits["slicer"] += 1
                if self._swallow:
                    self.hits["timeout"] += 1
                    continue
                data, last = look(link, data)
                if data:
                    writer.write(data)
                    await writer.drain()
                if last:
                    return

    def _from_client(self, link: _Link, data: bytes) -> Tuple[bytes, bool]:
        if self._marker and self._marker in data:
            link.dropping = True
        return data, False

    def _from_server(self, link: _Link, data: bytes) -> Tuple[bytes, bool]:
        if link.dropping:
            # the server has answered, so it has done what it was told; nobody will hear of it
            self.hits["drop_reply"] += 1
            link.reset()
            return b"", True
        link.received += len(data)
        if self._limit and link.received >= self._limit:
            self.hits["limit_data"] += 1
            link.reset()
            return b"", True
        return data, False
