"""ASGI middleware: the compliance gate, a response cache, latencies by route, and a page of metrics."""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

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
# An order of magnitude less memory than by default, and a tenth of the time to export.
_ROUTE_LAYOUT: Final = {"lowest_ns": 1_000, "significant_figures": 2}
# A path that no route matches is a stranger's choice.
_UNROUTED: Final = frozenset({404, 405})


class PerformanceMiddleware:
    """Wraps an ASGI application; scopes other than HTTP pass through.

    Args:
        app: the application.
        validator: checks `X-Constitutional-Hash` where a request has it: one that is not accepted is answered with 403,
            and the application never sees it. Adds the headers of `response_headers()` to responses. None: no gate.
        require_hash: whether a request without the header is refused too.
        cache: keeps responses to GET, as a shared cache of RFC 9111 does; the application opens and closes it. Its
            namespace may be shared with other uses. None: no response is kept.
        ttl: seconds for which a response is fresh that does not say so itself, and whose request carries neither
            cookies nor credentials; None keeps none of these.
        vary: names of request headers by which responses differ though they do not say so.
        max_body_bytes: larger bodies pass, and are not kept.
        metrics: returns the content type and the text of a page of metrics, which the gate does not guard; None for no
            such page.
        metrics_path: where that page is.
        max_routes: how many routes have latencies of their own; the others share those of "other".
        clock: the time in seconds since the epoch, as the cache's.

    Raises:
        TypeError, ValueError: for an argument out of bounds, and for `require_hash` without a validator.
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
            raise TypeError(f"validator must be a ComplianceValidator or None, not {validator!r:.100}")
        if require_hash and validator is None:
            raise ValueError("require_hash needs a validator")
        if isinstance(vary, str):
            raise TypeError(f"vary must be an iterable of names, not {vary!r}")
        if checked_int("max_routes", max_routes) < 0:
            raise ValueError(f"max_routes must be at least 0, not {max_routes!r}")
        if checked_int("max_body_bytes", max_body_bytes) < 0:
            raise ValueError(f"max_body_bytes must be at least 0, not {max_body_bytes!r}")
        if ttl is not None:
            ttl = checked_positive("ttl", ttl)
        if not metrics_path.startswith("/"):
            raise ValueError(f"metrics_path must begin with /, not {metrics_path!r}")
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
        """How long responses took until their last byte was handed over, in ns, by route.

        A route is the template that the framework has put into `scope["route"]`, else the path; paths that were not
        found, and all beyond `max_routes`, are "other". The histograms are the middleware's own, of two figures.
        """
        return self._routes.copy()

    def counts(self) -> HttpCounts:
        """The counts so far."""
        cached = self._responses
        if cached is None:
            return HttpCounts(self._refused, 0, 0, 0, 0)
        return HttpCounts(self._refused, cached.hits, cached.misses, cached.bypassed, cached.stored)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets the application do so."""
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
                if not await self._answered(self._responses, request, scope, send, started_ns):
                    with self._responses.asking(request):
                        await self._pass(scope, receive, send, started_ns, request)
                return
        await self._pass(scope, receive, send, started_ns, request)

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
        unchanged = tags is not None and stored.status == 200 and stored.is_tagged(tags)
        headers = stored.headers_at(responses.clock(), not_modified=unchanged)
        status = 304 if unchanged else stored.status
        await send({"type": "http.response.start", "status": status, "headers": self._with_added(headers)})
        body = b"" if unchanged or scope["method"] == "HEAD" else stored.body
        await send({"type": "http.response.body", "body": body})
        self._routes.record(stored.route, started_ns)
        return True

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, started_ns: int, request: CacheableRequest | None
    ) -> None:
        exchange = _Exchange(scope, receive, send, self._with_added, self._routes, started_ns)
        exchange.responses, exchange.request = self._responses, request
        try:
            # Only what is kept has to be known whole: whether the client is still there matters to nothing else.
            await self._app(scope, receive if request is None else exchange.receive, exchange.send)
        finally:
            exchange.end()

    def _with_added(self, headers: Iterable[tuple[bytes, bytes]]) -> _RawHeaders:
        names = self._added_names
        return [*(pair for pair in headers if pair[0].lower() not in names), *self._added]


class _Routes:
    """Latencies by route, of a bounded number of routes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._latencies: dict[str, LatencyHistogram] = {}

    def copy(self) -> dict[str, LatencyHistogram]:
        """The histograms themselves, in a dict of the caller's own."""
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
    """One request that the application answers."""

    __slots__ = (
        "_gone",
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
        self._gone = False
        self.responses: ResponseCache | None = None
        self.request: CacheableRequest | None = None
        self.status = 0

    async def receive(self) -> Message:
        """What the application hears of the client."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        """What the application says to the client, passed on at once."""
        kind = message["type"]
        last = False
        if kind == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            # HEAD has no body to keep, and trailers are not kept.
            if self.request is not None and self._scope["method"] == "GET" and not message.get("trailers"):
                assert self.responses is not None
                self._recording = self.responses.record(self.request, self.status, headers)
            elif self.responses is not None and 200 <= self.status < 400:
                # Before the client hears of its success, and may come back to see it.
                await self.responses.invalidate(self._scope)
            message = {**message, "headers": self._with_added(headers)}
        elif kind == "http.response.body":
            last = not message.get("more_body", False)
            if self._recording is not None:
                self._recording.add(message.get("body", b""))
        elif self._recording is not None:
            # A body by other means, as from a file, is not seen here.
            self._recording.give_up()
        await self._send(message)
        if last:
            await self._finish()

    async def _finish(self) -> None:
        self.end()
        recording, self._recording = self._recording, None
        if recording is not None and not self._gone:
            assert self.responses is not None
            await self.responses.store(recording, self._route())

    def end(self) -> None:
        """The response has ended, whole or not."""
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.record(self._route(), self._started_ns)

    def _route(self) -> str:
        scope = self._scope
        template = getattr(scope.get("route"), "path", None)
        if not isinstance(template, str):
            return OTHER if self.status in _UNROUTED else str(scope["path"])[:_MAX_ROUTE]
        # What an application is mounted at inside another has been moved from the path to the root by now.
        mounted = scope.get("root_path", "")[len(scope["app_root_path"]) :] if "app_root_path" in scope else ""
        return (template if mounted.endswith(template) else mounted + template)[:_MAX_ROUTE]


async def _respond(scope: Scope, send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
