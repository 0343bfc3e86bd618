"""ASGI middleware: compliance gate, response cache, latencies by route, and a metrics page."""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from acgsperf import hooks
from acgsperf._native.arguments import checked_callable, checked_int, checked_positive
from acgsperf.asgi.http_caching import CacheableRequest, Recording, ResponseCache
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import ComplianceError
from acgsperf.metrics.source import HttpCounts
from acgsperf.validator import HASH_HEADER, ComplianceValidator

if TYPE_CHECKING:
    from acgsperf.cache import TieredCache

__all__ = ["PerformanceMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_RawHeaders = list[tuple[bytes, bytes]]

OTHER: Final = "other"
_HASH_HEADER: Final = HASH_HEADER.lower().encode()
_MAX_SHOWN: Final = 64
_MAX_ROUTE: Final = 200
# Uses a tenth of the memory and of the export time of the default layout.
_ROUTE_LAYOUT: Final = {"lowest_ns": 1_000, "significant_figures": 2}
# If no route matches, the client has chosen the path freely: it must not create a route of its own.
_UNROUTED: Final = frozenset({404, 405})


class PerformanceMiddleware:
    """Wraps an ASGI application. Scopes other than HTTP pass through unchanged.

    Args:
        app: the application.
        validator: checks the header `X-Constitutional-Hash` of each request that has one. A request whose hash is not
            accepted is answered with 403 and does not reach the application. Adds the headers of `response_headers()`
            to responses. None: no check.
        require_hash: also refuse requests without the header.
        cache: stores responses to GET as a shared cache of RFC 9111 does. The application opens and closes it. Other
            users may share its namespace. None: responses are not stored.
        ttl: seconds for which a response without a lifetime of its own is fresh, if its request has neither cookies
            nor credentials. None: such responses are not stored.
        vary: names of request headers on which every response depends, in addition to its `Vary` header.
        max_body_bytes: responses with larger bodies are not stored.
        metrics: returns content type and text of the metrics page. The page is not protected by the gate. None: no
            metrics page.
        metrics_path: path of the metrics page.
        max_routes: number of routes with latencies of their own; all other routes are counted as "other".
        clock: for tests. Returns seconds since the epoch, by default `time.time`, because HTTP dates do so too. The
            clock of the cache is another one: it is monotonic.

    Raises:
        TypeError, ValueError: if an argument is out of bounds, or for `require_hash` without a validator.
    """

    def __init__(
        self,
        app: App,
        *,
        validator: ComplianceValidator | None = None,
        require_hash: bool = False,
        cache: "TieredCache[Any] | None" = None,
        ttl: float | None = None,
        vary: Iterable[str] = (),
        max_body_bytes: int = 1 << 20,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
        metrics_path: str = "/metrics",
        max_routes: int = 100,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if validator is not None and not isinstance(validator, ComplianceValidator):
            raise TypeError(f"validator must be a ComplianceValidator or None, got {validator!r:.100}")
        if require_hash and validator is None:
            raise ValueError("require_hash=True needs a validator, got validator=None")
        if isinstance(vary, str):
            raise TypeError(f"vary must be an iterable of header names, got {vary!r}")
        if checked_int("max_routes", max_routes) < 0:
            raise ValueError(f"max_routes must be at least 0, got {max_routes!r}")
        if checked_int("max_body_bytes", max_body_bytes) < 0:
            raise ValueError(f"max_body_bytes must be at least 0, got {max_body_bytes!r}")
        if ttl is not None:
            ttl = checked_positive("ttl", ttl)
        if not metrics_path.startswith("/"):
            raise ValueError(f"metrics_path must begin with /, got {metrics_path!r}")
        self._app = app
        self._validator = validator
        self._require_hash = require_hash
        self._responses: ResponseCache | None = None
        if cache is not None:
            self._responses = ResponseCache(cache, ttl=ttl, vary=vary, max_body_bytes=max_body_bytes, clock=clock)
        self._metrics = checked_callable("metrics", metrics)
        self._metrics_path = metrics_path
        self._routes = _Routes(max_routes)
        self._refused = 0
        added = {} if validator is None else validator.response_headers()
        self._added = [(name.lower().encode(), value.encode()) for name, value in added.items()]
        self._added_names = frozenset(name for name, _ in self._added)

    def routes(self) -> dict[str, LatencyHistogram]:
        """Return the latencies of responses by route, in ns, until their last byte was sent.

        A route is the template that the framework has put into `scope["route"]`; without one it is the path. Paths that
        were not found, and all routes beyond `max_routes`, are "other". The histograms are live objects with two
        significant figures.
        """
        return self._routes.copy()

    def connection_uses(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return for each (route, pool) how many connections requests have used, and for how many ns.

        It counts what tasks return that the request has started, or the request itself.
        """
        return dict(self._routes.connection_uses)

    def counts(self) -> HttpCounts:
        """Return the counts so far."""
        cached = self._responses
        if cached is None:
            return HttpCounts(self._refused, 0, 0, 0, 0)
        return HttpCounts(self._refused, cached.hits, cached.misses, cached.bypassed, cached.stored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_ns = time.perf_counter_ns()
        if self._metrics is not None and scope["path"] == scope.get("root_path", "") + self._metrics_path:
            content_type, body = self._metrics()
            await _respond(scope, send, 200, content_type, body)
            return
        if self._validator is not None and (refusal := self._refusal(self._validator, scope)) is not None:
            self._refused += 1
            await _respond(scope, send, 403, "application/json", refusal)
            return
        request = None
        if self._responses is not None:
            request = self._responses.request(scope)
            if request is not None:
                if await self._answered(self._responses, request, scope, send, started_ns):
                    return
                # A response to HEAD has no body to store.
                if scope["method"] == "GET":
                    await self._responses.begin(request)
        await self._forward(scope, receive, send, started_ns, request)

    def _refusal(self, validator: ComplianceValidator, scope: Scope) -> bytes | None:
        found = [value for name, value in scope["headers"] if name == _HASH_HEADER]
        if not found and not self._require_hash:
            return None
        for value in found or (None,):
            text = None if value is None else value.decode("latin-1")
            if not validator.validate(text):
                shown = None if text is None else text[:_MAX_SHOWN]
                error = str(ComplianceError(validator.expected, shown))
                return json.dumps({"error": error, "expected": validator.expected, "found": shown}).encode()
        return None

    async def _answered(
        self, responses: ResponseCache, request: CacheableRequest, scope: Scope, send: Send, started_ns: int
    ) -> bool:
        stored = await responses.find(request)
        if stored is None:
            return False
        tags = request.if_none_match
        unchanged = tags is not None and stored.status == 200 and stored.matches_etag(tags)
        headers = stored.headers_at(responses.clock(), not_modified=unchanged)
        status = 304 if unchanged else stored.status
        await send({"type": "http.response.start", "status": status, "headers": self._with_added(headers)})
        body = b"" if unchanged or scope["method"] == "HEAD" else stored.body
        await send({"type": "http.response.body", "body": body})
        self._routes.record(stored.route, started_ns)
        return True

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, started_ns: int, request: CacheableRequest | None
    ) -> None:
        exchange = _Exchange(scope, receive, send, self._with_added, self._routes, started_ns)
        exchange.responses, exchange.request = self._responses, request
        uses: dict[str, tuple[int, int]] = {}
        token = hooks.connection_uses.set(uses)
        try:
            # `exchange.receive` watches for a disconnected client, which matters only if the response may be stored.
            await self._app(scope, receive if request is None else exchange.receive, exchange.send)
        finally:
            hooks.connection_uses.reset(token)
            exchange.end()
            # Only now: a framework may return connections after the response has ended.
            if uses:
                self._routes.note_connections(exchange.route(), uses)

    def _with_added(self, headers: Iterable[tuple[bytes, bytes]]) -> _RawHeaders:
        names = self._added_names
        return [*(pair for pair in headers if pair[0].lower() not in names), *self._added]


class _Routes:
    """Latencies of a bounded number of routes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._latencies: dict[str, LatencyHistogram] = {}
        self.connection_uses: dict[tuple[str, str], tuple[int, int]] = {}

    def note_connections(self, route: str, uses: Mapping[str, tuple[int, int]]) -> None:
        """Count the connections that a request has used, of which the latency is recorded."""
        if route not in self._latencies:
            route = OTHER
        for pool, (number, used_ns) in uses.items():
            total, total_ns = self.connection_uses.get((route, pool), (0, 0))
            self.connection_uses[route, pool] = (total + number, total_ns + used_ns)

    def copy(self) -> dict[str, LatencyHistogram]:
        """Return the live histograms in a new dict."""
        return dict(self._latencies)

    def record(self, route: str, started_ns: int) -> None:
        """Count a response that has just ended."""
        elapsed_ns = time.perf_counter_ns() - started_ns
        latency = self._latencies.get(route)
        if latency is None:
            if len(self._latencies) - (OTHER in self._latencies) >= self._most:
                route = OTHER
            latency = self._latencies.setdefault(route, LatencyHistogram(**_ROUTE_LAYOUT))
        latency.record(min(elapsed_ns, latency.highest_ns))


class _Exchange:
    """One request that the application answers, and its response."""

    __slots__ = (
        "_disconnected",
        "_receive",
        "_recording",
        "_routes",
        "_scope",
        "_send",
        "_started_ns",
        "_with_added",
        "request",
        "responses",
        "status",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        with_added: Callable[[Iterable[tuple[bytes, bytes]]], _RawHeaders],
        routes: _Routes,
        started_ns: int,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._with_added = with_added
        self._routes: _Routes | None = routes
        self._started_ns = started_ns
        self._recording: Recording | None = None
        self._disconnected = False
        self.responses: ResponseCache | None = None
        self.request: CacheableRequest | None = None
        self.status = 0

    async def receive(self) -> Message:
        """Pass a message of the client to the application."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the application to the client at once."""
        kind = message["type"]
        last = False
        if kind == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            # Trailers are not stored.
            if self.request is not None and self.request.load is not None and not message.get("trailers"):
                assert self.responses is not None
                self._recording = self.responses.record(self.request, self.status, headers)
            elif self.responses is not None and 200 <= self.status < 400:
                # Before the client learns of the success: its next request must not get the old response.
                await self.responses.invalidate(self._scope)
            message = {**message, "headers": self._with_added(headers)}
        elif kind == "http.response.body":
            last = not message.get("more_body", False)
            if self._recording is not None:
                self._recording.add(message.get("body", b""))
        elif self._recording is not None:
            # A body sent by an extension, for example from a file, is not visible here.
            self._recording.give_up()
        await self._send(message)
        if last:
            await self._finish()

    async def _finish(self) -> None:
        self.end()
        recording, self._recording = self._recording, None
        if recording is not None and not self._disconnected:
            assert self.responses is not None
            await self.responses.store(recording, self.route())

    def end(self) -> None:
        """Record the latency. Call it when the response has ended, complete or not."""
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.record(self.route(), self._started_ns)

    def route(self) -> str:
        """Return the route of the request, as far as it is known."""
        scope = self._scope
        template = getattr(scope.get("route"), "path", None)
        if not isinstance(template, str):
            return OTHER if self.status in _UNROUTED else str(scope["path"])[:_MAX_ROUTE]
        # A mounted application: its mount path has been moved from the path to the root path.
        mounted = scope.get("root_path", "")[len(scope["app_root_path"]) :] if "app_root_path" in scope else ""
        return (template if mounted.endswith(template) else mounted + template)[:_MAX_ROUTE]


async def _respond(scope: Scope, send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
