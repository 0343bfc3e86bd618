"""The client of a request: its messages, and whether it has left."""

import asyncio
from collections import deque
from typing import Final

from acgsperf.asgi.types import Message, Receive

__all__ = ["Client"]


class Client:
    """Passes the messages of a client on, and notices that it has left even if the application does not ask.

    A server like uvicorn does not cancel the application then: it only has a message for it.

    Args:
        first: a message that was received already.
        receive: returns the following ones. It is never called twice at the same time.

    Attributes:
        has_left: whether the client is known to have left.
    """

    def __init__(self, first: Message, receive: Receive) -> None:
        self._messages: Final = deque((first,))
        self._receive = receive
        self._reading: Final = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self.has_left: bool = first["type"] == "http.disconnect"

    async def receive(self) -> Message:
        """Return the next message."""
        if not self._messages:
            async with self._reading:
                # The watching task may have read it meanwhile.
                if not self._messages:
                    await self._read()
        return self._messages.popleft()

    def leaving(self) -> asyncio.Task[None]:
        """Return a task that ends when the client has left."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return self._watching

    def close(self) -> None:
        """Watch no longer. Call it when the request was answered."""
        watching = self._watching
        if watching is not None and not watching.cancel() and not watching.cancelled():
            # Nobody else may have asked for the error of the server.
            watching.exception()

    async def _read(self) -> None:
        message = await self._receive()
        self.has_left = message["type"] == "http.disconnect"
        self._messages.append(message)

    async def _watch(self) -> None:
        while not self.has_left:
            async with self._reading:
                if not self.has_left:
                    await self._read()
