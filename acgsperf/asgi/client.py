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
    """

    def __init__(self, first: Message, receive: Receive) -> None:
        self._messages: Final = deque((first,))
        self._receive = receive
        self._has_left = first["type"] == "http.disconnect"
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """Return the next message."""
        while not self._messages:
            reading = self._read()
            await asyncio.wait((reading,))
            reading.result()
        return self._messages.popleft()

    def repeat(self) -> None:
        """Return the request without a body again, because the application is called again."""
        self._messages.appendleft({"type": "http.request", "body": b"", "more_body": False})

    def leaving(self) -> asyncio.Task[None]:
        """Return a task that ends when the client has left."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return self._watching

    def close(self) -> None:
        """Read no more messages. Call it when the request was answered."""
        for task in (self._reading, self._watching):
            if task is not None and not task.cancel() and not task.cancelled():
                # Nobody else may have asked for the error of the server.
                task.exception()

    def _read(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_one())
        return self._reading

    async def _read_one(self) -> None:
        message = await self._receive()
        self._has_left = message["type"] == "http.disconnect"
        self._messages.append(message)

    async def _watch(self) -> None:
        while not self._has_left:
            reading = self._read()
            await asyncio.wait((reading,))
            reading.result()
