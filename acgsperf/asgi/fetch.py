"""One call of the application whose response the cache may store, or that validates a stored one."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from acgsperf.asgi.client import Client
from acgsperf.asgi.exchange import AddedHeaders
from acgsperf.asgi.fields import Headers
from acgsperf.asgi.flights import Flight
from acgsperf.asgi.request import CacheableRequest
from acgsperf.asgi.response_cache import ResponseCache
from acgsperf.asgi.routes import route_of
from acgsperf.asgi.stored import Stored
from acgsperf.asgi.tags import tags_in
from acgsperf.asgi.types import App, Message, Scope, Send
from acgsperf.asgi.validators import (
    CONDITIONS,
    condition_headers,
    is_not_modified,
    not_modified_headers,
    validators_of,
)
from acgsperf.cache.pending import PendingLoad

if TYPE_CHECKING:
    from acgsperf.asgi.recording import Recording

__all__ = ["NOT_FORWARDED", "Fetch", "Serve"]

Serve = Callable[[Stored], Awaitable[None]]
_log: Final = logging.getLogger("acgsperf.asgi")
# RFC 5861, 4.
_ERRORS: Final = frozenset({500, 502, 503, 504})
# The statuses of a response that the client may have already (RFC 9110, 13.2.2).
_CONDITIONAL: Final = frozenset({200, 206})
# With this status the application says nothing about the resource, only about the rate of the client.
_TOO_MANY_REQUESTS: Final = 429
NOT_FORWARDED: Final = CONDITIONS | {b"range", b"if-range"}


class Fetch:
    """Calls the application, passes its response to the client, and stores it when the application has returned.

    The application does not get the conditions of the client, so that its response can be stored. The cache evaluates
    them, and answers the client with 304 if they say so. If a stale response has validators, the application gets
    conditions with those. If it validates the stale response, or fails, the client gets that one.

    Args:
        cache: gets the response.
        request: the request to answer.
        scope: of the request.
        client: of the request.
        send: sends a message to the client.
        serve: answers the client with a stored response.
        added: is added to the headers.
        stale: what is stored for the request; None if there is nothing.
        load: stores the response; None if it is not stored.
        flight: gets the decision whether the response will be stored; None if no other request waits for it.

    Attributes:
        status: of the application's response.
    """

    def __init__(
        self,
        cache: ResponseCache,
        request: CacheableRequest,
        scope: Scope,
        client: Client,
        send: Send,
        serve: Serve,
        added: AddedHeaders,
        *,
        stale: Stored | None,
        load: PendingLoad | None,
        flight: Flight | None,
    ) -> None:
        self._cache = cache
        self._request = request
        self._client = client
        self._send = send
        self._serve = serve
        self._added = added
        self._stale = stale
        self._load = load
        self._flight = flight
        # The application may change its list, and the key of the response must not change with it.
        request.headers = tuple(request.headers)
        conditions = [] if stale is None or request.is_head else condition_headers(stale.etag, stale.last_modified)
        self._validates = bool(conditions)
        # A validation asks for the whole response: the cache selects the range.
        dropped = NOT_FORWARDED if conditions else CONDITIONS
        self._scope: Scope = scope
        if conditions or request.if_none_match is not None or request.if_modified_since is not None:
            headers = [pair for pair in request.headers if pair[0] not in dropped]
            self._scope = {**scope, "headers": headers + conditions}
        self._requested_at = cache.now()
        self._recording: Recording | None = None
        self._response: Stored | None = None
        self._validated: Headers | None = None
        self._failed = False
        self._is_served = False
        self._body_dropped = False
        self._disconnected = False
        self._is_shared = False
        self.status: int = 0

    @property
    def route(self) -> str:
        """The route of the request, after the application was called."""
        return route_of(self._scope, self.status)

    async def run(self, app: App) -> None:
        """Call the application, and answer the client."""
        await self._call(app)
        await self._serve_stored()
        recording = self._recording
        if recording is None:
            return
        if self._response is not None:
            await self._cache.replace(self._request, self._load, self._stale, self._response)
        elif recording.freshness is None and self._replaces_stale:
            await self._cache.replace(self._request, self._load, self._stale, None)

    async def _call(self, app: App) -> None:
        try:
            await app(self._scope, self._receive_message, self._send_message)
        except Exception:
            if not (self._failed or (self._recording is None and self._validated is None and self._can_serve_stale)):
                if self._flight is not None and not self._is_shared:
                    self._flight.decide(False)
                raise
            self._fail()
            _log.exception(
                "response cache: the application failed for %.200s; serving the stale response",
                self._request.target.uri,
            )

    @property
    def _can_serve_stale(self) -> bool:
        stale = self._stale
        return (
            stale is not None
            and self._cache.answers_after_error(stale, self._cache.now())
            # It may have been removed meanwhile.
            and self._cache.is_current(self._request, self._load, stale)
        )

    @property
    def _replaces_stale(self) -> bool:
        """Whether the stale response is out of date now, although the new one is not stored."""
        return (
            self.status < 500 and self.status != _TOO_MANY_REQUESTS and (self._validates or self._request.range is None)
        )

    async def _receive_message(self) -> Message:
        message = await self._client.receive()
        # A server also sends `http.disconnect` after the last part of the response.
        if message["type"] == "http.disconnect" and (self._recording is None or not self._recording.has_ended):
            self._disconnected = True
        return message

    async def _send_message(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            await self._start(message)
            return
        if self._failed:
            return
        if self._validated is not None:
            if not message.get("more_body", False):
                await self._serve_stored()
            return
        if self._recording is not None:
            if kind == "http.response.body":
                self._recording.add(message.get("body", b""), not message.get("more_body", False))
            elif kind != "http.response.debug":
                # A body sent by an extension, for example from a file, is not visible here.
                self._recording.give_up()
            if self._recording.has_ended:
                self._complete(self._recording)
            if self._is_shared and self._recording.freshness is None:
                self._decide(False)
        if not self._body_dropped:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        self.status = status = message["status"]
        headers = list(message.get("headers", ()))
        if status == 304 and self._validates:
            self._validated = headers
            return
        if status in _ERRORS and self._can_serve_stale:
            self._fail()
            _log.warning(
                "response cache: the application answered %d for %.200s; serving the stale response",
                status,
                self._request.target.uri,
            )
            await self._serve_stored()
            return
        recording = self._recording = self._cache.record(self._request, status, headers, self._requested_at)
        # Trailers are not stored.
        if self._load is None or message.get("trailers"):
            recording.give_up()
        if self._flight is not None:
            self._flight.tags = tags_in(headers)
        fresh = recording.freshness
        self._decide(
            fresh is not None
            and not fresh.no_cache
            and self._cache.now() - fresh.born_at < fresh.lifetime + fresh.while_revalidate
        )
        if status in _CONDITIONAL and self._is_not_modified(headers):
            self._body_dropped = True
            unchanged = self._added.to(not_modified_headers(headers))
            await self._send({"type": "http.response.start", "status": 304, "headers": unchanged})
            await self._send({"type": "http.response.body", "body": b""})
            return
        await self._send({**message, "headers": self._added.to(headers)})

    async def _serve_stored(self) -> None:
        """Answer the client with the stale response if the application has validated it or failed."""
        if self._is_served or not (self._failed or self._validated is not None):
            return
        self._is_served = True
        assert self._stale is not None
        served = self._stale
        if not self._failed:
            assert self._validated is not None
            served, may_answer_others = await self._cache.freshen(
                self._request, self._load, self._stale, self._validated, self._requested_at
            )
            self._decide(may_answer_others)
            if may_answer_others:
                self._share(served)
        await self._serve(served)

    def _complete(self, recording: "Recording") -> None:
        """Make the response that will be stored, which other requests may have already."""
        if self._disconnected:
            # The application may have stopped early.
            return
        self._response = self._cache.response_of(recording, self.route)
        if self._response is not None and self._is_shared:
            self._share(self._response)

    def _share(self, response: Stored) -> None:
        if self._flight is not None:
            self._flight.tags = tags_in(response.headers)
            self._flight.complete(response, self._cache.response_key(self._request, response))

    def _fail(self) -> None:
        self._failed = True
        if self._flight is not None:
            self._flight.fail()

    def _decide(self, shareable: bool) -> None:
        self._is_shared = shareable
        if self._flight is not None:
            self._flight.decide(shareable)
        # Neither an error nor the response to a HEAD or to a range shows whether the next response can be shared.
        tells = self.status < 500 and self._load is not None and self._request.range is None
        if shareable or tells:
            self._cache.flights.remember(self._request.flight, shareable)

    def _is_not_modified(self, headers: Headers) -> bool:
        request = self._request
        if request.if_none_match is None and request.if_modified_since is None:
            return False
        etag, last_modified = validators_of(headers)
        # A response without `Last-Modified` may have changed after the date of the client.
        return is_not_modified(request.if_none_match, request.if_modified_since, etag, last_modified, float("inf"))
