"""Answers requests from the response cache, and calls the application for what it does not have."""

import asyncio
import logging
from functools import partial
from typing import Final

from acgsperf.asgi.client import Client
from acgsperf.asgi.exchange import NO_BODY, AddedHeaders, Exchange, first_part, replayed
from acgsperf.asgi.fetch import NOT_FORWARDED, Fetch
from acgsperf.asgi.flights import Flight
from acgsperf.asgi.request import CacheableRequest
from acgsperf.asgi.response_cache import ResponseCache, Use
from acgsperf.asgi.routes import Routes
from acgsperf.asgi.selection import selected
from acgsperf.asgi.stored import Stored
from acgsperf.asgi.types import App, Message, Receive, Scope, Send
from acgsperf.errors import CacheError

__all__ = ["Serving"]

_log: Final = logging.getLogger("acgsperf.asgi")
_READS: Final = frozenset({"GET", "HEAD"})
# A request waits for at most this many calls that other requests have started. Then it calls the application itself.
_MAX_FLIGHTS: Final = 2
_SHUTDOWN_S: Final = 5.0


class Serving:
    """Answers requests from the response cache, and calls the application for what it does not have.

    Args:
        app: the application.
        cache: has the stored responses.
        added: is added to the headers of all responses.
        routes: gets the latencies.
    """

    def __init__(self, app: App, cache: ResponseCache, added: AddedHeaders, routes: Routes) -> None:
        self._app = app
        self._cache = cache
        self._added = added
        self._routes = routes
        self._revalidations: set[asyncio.Task[None]] = set()
        self._revalidated: dict[str, Flight] = {}

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, started_ns: int, message: Message | None = None
    ) -> None:
        """Answer an HTTP request.

        Args:
            scope, receive, send: of the request.
            started_ns: when it began, by `time.perf_counter_ns`.
            message: the first part of its body, if that was received already.
        """
        cache = self._cache
        if scope["method"] not in _READS:
            cache.bypassed += 1
            # A copy, because the application may change the scope.
            before = {**scope, "headers": tuple(scope["headers"])}
            invalidate = partial(cache.invalidate, before)
            await Exchange(scope, send, self._added, self._routes, started_ns, invalidate).run(self._app, receive)
            return
        if message is None:
            message = await first_part(await receive(), receive)
        request = cache.request(scope)
        if request.bypasses or message.get("body") or message["type"] != "http.request":
            cache.bypassed += 1
            exchange = Exchange(scope, send, self._added, self._routes, started_ns)
            await exchange.run(self._app, replayed(message, receive))
            return
        stored = cache.local(request)
        if stored is not None and cache.use_of(stored, request, cache.now()) is Use.ANSWER:
            await self._hit(request, stored, send, started_ns)
            return
        client = Client(message, receive)
        try:
            await self._beyond_local(scope, client, send, started_ns, request)
        finally:
            client.close()

    async def end_revalidations(self) -> None:
        """Wait for the revalidations in the background, and cancel those that take too long."""
        if self._revalidations:
            _, pending = await asyncio.wait(self._revalidations, timeout=_SHUTDOWN_S)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _beyond_local(
        self, scope: Scope, client: Client, send: Send, started_ns: int, request: CacheableRequest
    ) -> None:
        """Answer a request for which L1 has no fresh response."""
        cache = self._cache
        stored, flight, name, waited = None, None, "", 0
        while True:
            stored = await cache.find(request)
            use = Use.NONE if stored is None else cache.use_of(stored, request, cache.now())
            if stored is not None and use is not Use.NONE:
                if use is Use.WHILE_REVALIDATE and not request.is_head:
                    self._revalidate(scope, request, stored)
                await self._hit(request, stored, send, started_ns)
                return
            if stored is not None and stored.part is not None:
                # It has become stale meanwhile. A part is not validated.
                stored = None
            if request.only_if_cached:
                cache.misses += 1
                await send({"type": "http.response.start", "status": 504, "headers": self._added.to([])})
                await send({"type": "http.response.body", "body": b""})
                return
            if waited == _MAX_FLIGHTS or not _may_share(request, stored):
                break
            name = request.flight
            other = cache.flights.get(name)
            if other is None:
                flight = cache.flights.start(name, request.root, client)
                break
            shares = await other.wait(client)
            if client.has_left:
                return
            # A call that was given up says nothing about the next one.
            waited += not other.is_abandoned
            answer = self._answer_of(other, request) if shares else self._answer_after_error(other, request, stored)
            if answer is not None:
                await self._hit(request, answer, send, started_ns)
                return
            if not shares:
                break
        cache.misses += 1
        try:
            await self._fetch(scope, client, send, started_ns, request, stored, flight)
        finally:
            if flight is not None:
                cache.flights.end(name, flight)

    def _answer_of(self, other: Flight, request: CacheableRequest) -> Stored | None:
        """Return the response of another call if it is complete and answers this request."""
        response = other.response
        return response if response is not None and self._cache.answers(request, response, other.key) else None

    def _answer_after_error(self, other: Flight, request: CacheableRequest, stale: Stored | None) -> Stored | None:
        """Return the stale response if another call has failed and it may be used then."""
        cache = self._cache
        if stale is None or not other.failed or not cache.answers_after_error(stale, cache.now()):
            return None
        return stale if cache.is_current(request, other.load, stale) else None

    async def _fetch(
        self,
        scope: Scope,
        client: Client,
        send: Send,
        started_ns: int,
        request: CacheableRequest,
        stale: Stored | None,
        flight: Flight | None,
    ) -> None:
        cache = self._cache
        # A response to HEAD has no body to store.
        load = None if request.is_head else await cache.begin(request)
        if flight is not None:
            flight.load = load
        timed = _Timed(send, self._routes, started_ns)
        serve = partial(self._send_stored, request, send=timed.send)
        fetch = Fetch(
            cache, request, scope, client, timed.send, serve, self._added, stale=stale, load=load, flight=flight
        )
        timed.fetch = fetch
        with self._routes.counting_connections(lambda: fetch.route):
            try:
                await fetch.run(self._app)
            finally:
                timed.end()

    def _revalidate(self, scope: Scope, request: CacheableRequest, stale: Stored) -> None:
        """Ask the application in the background whether a stale response is still valid."""
        cache, name = self._cache, request.flight
        running = self._revalidated.get(name)
        if cache.flights.get(name) is not None or (running is not None and running.is_current):
            return
        # Its key has no flight if the last response could not be shared.
        flight = self._revalidated[name] = cache.flights.start(name, request.root, None) or Flight(request.root, None)
        # It validates the whole response, without extensions: a body that is sent by one could not be stored.
        headers = [pair for pair in request.headers if pair[0] not in NOT_FORWARDED]
        scope = {**scope, "headers": headers, "extensions": {}}
        whole = cache.request(scope)
        whole.sets, whole.sets_until, whole.variant = request.sets, request.sets_until, request.variant
        task = asyncio.create_task(self._run_revalidation(scope, whole, stale, flight, name))
        self._revalidations.add(task)
        task.add_done_callback(self._revalidations.discard)

    async def _run_revalidation(
        self, scope: Scope, request: CacheableRequest, stale: Stored, flight: Flight, name: str
    ) -> None:
        client = Client(NO_BODY, _never)
        try:
            load = flight.load = await self._cache.begin(request)
            fetch = Fetch(
                self._cache,
                request,
                scope,
                client,
                _discard,
                _discard,
                self._added,
                stale=stale,
                load=load,
                flight=flight,
            )
            with self._routes.counting_connections(lambda: fetch.route):
                await fetch.run(self._app)
        except CacheError:
            _log.info("response cache: closed during the revalidation of %.200s; not storing it", request.target.uri)
        except Exception:
            _log.exception(
                "response cache: the revalidation of %.200s failed; keeping the stale response", request.target.uri
            )
        finally:
            client.close()
            if self._revalidated.get(name) is flight:
                del self._revalidated[name]
            self._cache.flights.end(name, flight)

    async def _hit(self, request: CacheableRequest, stored: Stored, send: Send, started_ns: int) -> None:
        """Answer a request with a stored response, and count the hit."""
        self._cache.hits += 1
        await self._send_stored(request, stored, send)
        self._routes.record(stored.route, started_ns)

    async def _send_stored(self, request: CacheableRequest, stored: Stored, send: Send) -> None:
        """Answer a request with a stored response, or with the part that it asks for."""
        age = (b"age", str(max(int(self._cache.now() - stored.born_at), 0)).encode())
        status, headers, body = selected(request, stored)
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *self._added.pairs, age]})
        await send({"type": "http.response.body", "body": b"" if request.is_head else body})


class _Timed:
    """Passes messages to the client, and records the latency when the last one was sent."""

    __slots__ = ("_routes", "_send", "_started_ns", "fetch")

    def __init__(self, send: Send, routes: Routes, started_ns: int) -> None:
        self._send = send
        self._routes: Routes | None = routes
        self._started_ns = started_ns
        self.fetch: Fetch | None = None

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.end()

    def end(self) -> None:
        routes, self._routes = self._routes, None
        if routes is not None and self.fetch is not None:
            routes.record(self.fetch.route, self._started_ns)


async def _never() -> Message:
    """Wait for a client that does not exist, and so does not disconnect."""
    await asyncio.Event().wait()
    raise AssertionError


async def _discard(_: object) -> None:
    pass


def _may_share(request: CacheableRequest, stored: Stored | None) -> bool:
    """Return whether the response to another request may answer this one."""
    return not request.is_head and request.uses_stored and request.range is None and not (stored and stored.no_cache)
