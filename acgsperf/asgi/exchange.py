"""One call of the application that does not use the response cache."""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

from acgsperf.asgi.fields import Headers
from acgsperf.asgi.routes import Routes, route_of
from acgsperf.asgi.types import App, Message, RawHeaders, Receive, Scope, Send
from acgsperf.errors import CacheError

__all__ = ["NO_BODY", "AddedHeaders", "Exchange", "first_part", "replayed"]

# The message of a request without a body, as most servers write it.
NO_BODY: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
Invalidate = Callable[[Headers], Awaitable[None]]


class AddedHeaders:
    """The headers that are added to every response. They replace its headers with the same names.

    Attributes:
        names: their names.
        pairs: all of them.
    """

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.pairs: Final = list(headers)
        self.names: Final = frozenset(name for name, _ in self.pairs)

    def to(self, headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
        """Return headers with the added ones."""
        if not self.pairs:
            return list(headers)
        names = self.names
        return [*(pair for pair in headers if pair[0].lower() not in names), *self.pairs]

    def left_out(self, send: Send) -> Send:
        """Return a `send` that removes them from a response."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() not in self.names]
                message = {**message, "headers": headers}
            await send(message)

        return send_without


class Exchange:
    """Passes the response of the application to the client, and measures it.

    Args:
        scope: of the request.
        send: sends a message to the client.
        added: is added to the headers.
        routes: gets the latency.
        started_ns: when the request began, by `time.perf_counter_ns`.
        invalidate: called with the headers of a successful response before the client gets them, and again when the
            application has returned, because it may commit its changes at the end; None: not called.
    """

    __slots__ = ("_added", "_changed", "_invalidate", "_routes", "_scope", "_send", "_started_ns", "status")

    def __init__(
        self,
        scope: Scope,
        send: Send,
        added: AddedHeaders,
        routes: Routes,
        started_ns: int,
        invalidate: Invalidate | None = None,
    ) -> None:
        self._scope = scope
        self._send = send
        self._added = added
        self._routes: Routes | None = routes
        self._started_ns = started_ns
        self._invalidate = invalidate
        self._changed: Headers | None = None
        self.status: int = 0

    async def run(self, app: App, receive: Receive) -> None:
        """Call the application."""
        routes = self._routes
        assert routes is not None
        with routes.counting_connections(self._route):
            try:
                await app(self._scope, receive, self.send)
            finally:
                self.end()
                if self._invalidate is not None and self._changed is not None:
                    # Closed: the server is shutting down, and the client has its response.
                    with suppress(CacheError):
                        await self._invalidate(self._changed)

    async def send(self, message: Message) -> None:
        """Pass a message of the application to the client at once."""
        last = False
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            if self._invalidate is not None and 200 <= self.status < 400:
                # Before the client gets the response, because its next request must not get the old state.
                self._changed = headers
                await self._invalidate(headers)
            message = {**message, "headers": self._added.to(headers)}
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
        await self._send(message)
        if last:
            self.end()

    def end(self) -> None:
        """Record the latency. Call it when the response has ended, complete or not."""
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.record(self._route(), self._started_ns)

    def _route(self) -> str:
        return route_of(self._scope, self.status)


async def first_part(message: Message, receive: Receive) -> Message:
    """Return the first message that has a part of the body, or the last one if there is no body.

    Args:
        message: the first message of the request.
        receive: returns the following ones.
    """
    while message.get("more_body") and not message.get("body"):
        message = await receive()
    return message


def replayed(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that first returns a message that was received already, and then the following ones."""
    pending: list[Message] = [message]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
