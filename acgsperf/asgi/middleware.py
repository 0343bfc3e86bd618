"""ASGI middleware: compliance gate, response cache, latencies by route, and a metrics page."""

import math
import time
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from acgsperf._native.arguments import checked_callable, checked_int, checked_positive
from acgsperf.asgi.credentials import DEFAULT_CREDENTIALS
from acgsperf.asgi.exchange import NO_BODY, AddedHeaders, Exchange, first_part
from acgsperf.asgi.freshness import FreshnessOptions
from acgsperf.asgi.gate import Gate
from acgsperf.asgi.hits import Hit, Hits
from acgsperf.asgi.response_cache import ResponseCache
from acgsperf.asgi.routes import HIGHEST_NS, Routes
from acgsperf.asgi.serving import Serving
from acgsperf.asgi.types import App, Message, Receive, Scope, Send
from acgsperf.cache.arguments import checked_number
from acgsperf.counting import note
from acgsperf.dispatch import LatencyHistogram
from acgsperf.errors import CacheError
from acgsperf.metrics.source import HttpCounts
from acgsperf.validator import ComplianceValidator

if TYPE_CHECKING:
    from acgsperf.cache import TieredCache, Written

__all__ = ["PerformanceMiddleware"]


class PerformanceMiddleware:
    """Wraps an ASGI application. Scopes other than HTTP pass through.

    Args:
        app: the application.
        validator: checks the header `X-Constitutional-Hash` of each request that has one. A request whose hash is not
            accepted is answered with 403 and does not reach the application. Adds the headers of `response_headers()`
            to responses. None: no check.
        require_hash: also refuse requests without the header, except CORS preflights. Responses to requests that pass
            without the header do not get those of `response_headers()`, because they contain the accepted hash.
        exempt: paths for which `require_hash` does not apply, for example `("/health",)`.
        cache: stores responses to GET as a shared cache of RFC 9111 does. The application opens and closes it. Other
            users may share its namespace. None: responses are not stored.
        ttl: seconds for which a response without a lifetime of its own is fresh, if its request has neither cookies
            nor credentials. None: such responses are not stored.
        heuristic: the share of the time since `Last-Modified` for which a response without a lifetime of its own is
            fresh, at most a day; 0.1 is usual. It takes precedence over `ttl`. None (default): not used.
        stale_ttl: seconds for which a stale response with `ETag` or `Last-Modified` is kept, so that the application
            can validate it. 3600 by default.
        stale_while_revalidate: seconds for which a stale response is served while the application validates it in the
            background. Applies to responses without this directive. 0 by default.
        stale_if_error: seconds for which a stale response is served if the application raises, or answers with 500,
            502, 503 or 504. Applies to responses without this directive. 0 by default.
        vary: names of request headers on which every response depends, in addition to its `Vary` header.
        credentials: names of request headers that contain credentials, in addition to `Authorization` and `Cookie`. By
            default the usual names of API keys, tokens and users.
        max_body_bytes: responses with larger bodies are not stored.
        metrics: returns content type and text of the metrics page. The page is not protected by the gate. None: no
            metrics page.
        metrics_path: path of the metrics page.
        dashboard: an ASGI application for `dashboard_path` and the paths below it, for example a
            `acgsperf.dashboard.Dashboard`. It is not protected by the gate. None: no dashboard.
        dashboard_path: path of the dashboard.
        max_routes: number of routes with latencies of their own; all other routes are counted as "other".
        clock: for tests. Returns seconds since the epoch, with which HTTP dates are compared. By default `time.time`.
            The cache has a monotonic clock of its own.

    Raises:
        TypeError, ValueError: if an argument is out of bounds, or for `require_hash` or `exempt` without a validator.
    """

    def __init__(
        self,
        app: App,
        *,
        validator: ComplianceValidator | None = None,
        require_hash: bool = False,
        exempt: Iterable[str] = (),
        cache: "TieredCache[Any] | None" = None,
        ttl: float | None = None,
        heuristic: float | None = None,
        stale_ttl: float = 3600,
        stale_while_revalidate: float = 0,
        stale_if_error: float = 0,
        vary: Iterable[str] = (),
        credentials: Iterable[str] = DEFAULT_CREDENTIALS,
        max_body_bytes: int = 1 << 20,
        metrics: Callable[[], tuple[str, bytes]] | None = None,
        metrics_path: str = "/metrics",
        dashboard: App | None = None,
        dashboard_path: str = "/dashboard",
        max_routes: int = 100,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if validator is not None and not isinstance(validator, ComplianceValidator):
            raise TypeError(f"validator must be a ComplianceValidator or None, got {validator!r:.100}")
        exempt = _checked_paths(exempt)
        for name, given in (("require_hash", require_hash), ("exempt", exempt)):
            if given and validator is None:
                raise ValueError(f"{name}={given!r:.100} needs a validator, got validator=None")
        if checked_int("max_routes", max_routes) < 0:
            raise ValueError(f"max_routes must be at least 0, got {max_routes!r}")
        if checked_int("max_body_bytes", max_body_bytes) < 0:
            raise ValueError(f"max_body_bytes must be at least 0, got {max_body_bytes!r}")
        for name, path in (("metrics_path", metrics_path), ("dashboard_path", dashboard_path)):
            if not path.startswith("/"):
                raise ValueError(f"{name} must begin with /, got {path!r}")
        freshness = FreshnessOptions(
            ttl=None if ttl is None else checked_positive("ttl", ttl),
            heuristic=None if heuristic is None else checked_positive("heuristic", heuristic),
            stale_ttl=_checked_seconds("stale_ttl", stale_ttl),
            while_revalidate=_checked_seconds("stale_while_revalidate", stale_while_revalidate),
            if_error=_checked_seconds("stale_if_error", stale_if_error),
        )
        self._app = app
        self._gate = None if validator is None else Gate(validator, require_hash, exempt)
        added = {} if validator is None else validator.response_headers()
        self._added = AddedHeaders((name.lower().encode(), value.encode()) for name, value in added.items())
        self._metrics = checked_callable("metrics", metrics)
        self._metrics_path = metrics_path
        self._dashboard = checked_callable("dashboard", dashboard)
        self._dashboard_path = dashboard_path.rstrip("/")
        getattr(dashboard, "add_http", _nothing)(self)
        self._routes = Routes(max_routes)
        self._responses: ResponseCache | None = None
        self._serving: Serving | None = None
        self._hits: Hits | None = None
        self._find_hit: Callable[[Scope], Hit | None] | None = None
        if cache is not None:
            self._responses = ResponseCache(
                cache,
                freshness=freshness,
                vary=vary,
                credentials=credentials,
                max_body_bytes=max_body_bytes,
                not_stored=self._added.names,
                clock=clock,
            )
            self._serving = Serving(app, self._responses, self._added, self._routes)
            self._hits = Hits(self._responses, self._added, self._routes)
            self._find_hit = self._hits.find
        self._screens = any(part is not None for part in (self._gate, self._metrics, self._dashboard))
        note(self)

    def routes(self) -> dict[str, LatencyHistogram]:
        """Return the latencies of responses by route, in ns, until their last byte was sent.

        A route is the template that the framework has put into `scope["route"]`; without one it is the path. Paths that
        were not found, and all routes beyond `max_routes`, are "other". The histograms are live objects with two
        significant figures.
        """
        return self._routes.copy()

    def connection_uses(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return for each (route, pool) how many connections requests have used, and for how many ns.

        Includes the connections of the tasks that a request has started. A connection counts when it is returned.
        """
        return dict(self._routes.connection_uses)

    def counts(self) -> HttpCounts:
        """Return the counts so far."""
        refused = 0 if self._gate is None else self._gate.refused
        cached = self._responses
        if cached is None or self._hits is None:
            return HttpCounts(refused, 0, 0, 0, 0)
        return HttpCounts(refused, self._hits.count + cached.hits, cached.misses, cached.bypassed, cached.stored)

    async def purge(self, *, path: str | None = None, tag: str | None = None) -> "Written":
        """Remove stored responses from every tier and every worker, and return which tiers have removed them.

        Args:
            path: remove the responses of this path, whatever their host, query and variant are.
            tag: remove the responses that have this tag in `Cache-Tag` or `Surrogate-Key`.

        Raises:
            CacheError: if there is no cache, or if it is not open.
            TypeError: unless there is either a path or a tag.
            ValueError: if the path does not begin with `/`, or has a query.
        """
        if (path is None) == (tag is None):
            raise TypeError(f"purge needs either a path or a tag, got path={path!r:.100} and tag={tag!r:.100}")
        if self._responses is None:
            raise CacheError("the middleware has no cache to purge; pass it one with cache=")
        return await self._responses.purge(path, tag)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                # Collectors that were created before there was an event loop begin to publish.
                getattr(self._metrics, "publish_regularly", _nothing)()
                receive = self._lifespan(receive)
            await self._app(scope, receive, send)
            return
        started_ns = perf_counter_ns()
        if self._screens:
            if await self._screened(scope, receive, send):
                return
            if self._gate is not None and self._gate.is_unverified(scope):
                # These headers contain the accepted hash, which a stranger must not learn.
                send = self._added.left_out(send)
        message, find_hit = None, self._find_hit
        # A hit is answered here and not by `_serving`, because another coroutine would cost a tenth of it.
        if find_hit is not None and scope["method"] == "GET":
            message = await receive()
            if message != NO_BODY:
                message = await first_part(message, receive)
            hit = find_hit(scope) if message == NO_BODY else None
            if hit is not None:
                _, _, status, headers, body, record = hit
                # The server, or an outer middleware, may change the list.
                await send({"type": "http.response.start", "status": status, "headers": headers.copy()})
                await send({"type": "http.response.body", "body": body})
                elapsed_ns = perf_counter_ns() - started_ns
                if elapsed_ns > HIGHEST_NS:
                    elapsed_ns = HIGHEST_NS
                record(elapsed_ns)
                return
        if self._serving is None:
            await Exchange(scope, send, self._added, self._routes, started_ns).run(self._app, receive)
        else:
            await self._serving.answer(scope, receive, send, started_ns, message)

    async def _screened(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request for the metrics page or the dashboard, or one that the gate refuses; else return False."""
        if self._metrics is not None and scope["path"] == scope.get("root_path", "") + self._metrics_path:
            content_type, body = self._metrics()
            await _respond(scope, send, 200, content_type, body)
            return True
        if self._dashboard is not None:
            root = scope.get("root_path", "") + self._dashboard_path
            if scope["path"] == root or scope["path"].startswith(f"{root}/"):
                await self._dashboard({**scope, "root_path": root}, receive, send)
                return True
        refusal = None if self._gate is None else self._gate.refusal(scope)
        if refusal is None:
            return False
        await _respond(scope, send, 403, "application/json", refusal)
        return True

    def _lifespan(self, receive: Receive) -> Receive:
        """Return a `receive` that ends the revalidations in the background before the application shuts down."""
        serving = self._serving
        if serving is None:
            return receive

        async def receive_and_end() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await serving.end_revalidations()
            return message

        return receive_and_end


def _nothing(*_: object) -> None:
    pass


def _checked_seconds(name: str, given: float) -> float:
    checked_number(name, given, "at least 0 and finite", lambda seconds: 0 <= seconds < math.inf)
    return given


def _checked_paths(exempt: Iterable[str]) -> tuple[str, ...]:
    paths = (exempt,) if isinstance(exempt, str) else tuple(exempt)
    if isinstance(exempt, str) or not all(isinstance(path, str) for path in paths):
        raise TypeError(f"exempt must be an iterable of paths, got {exempt!r:.100}")
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"exempt must contain paths that begin with /, got {path!r:.100}")
    return paths


async def _respond(scope: Scope, send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
