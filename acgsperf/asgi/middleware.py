"""ASGI middleware: compliance gate, response cache, latencies by route, and a metrics page."""

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from acgsperf._native.arguments import checked_callable, checked_int, checked_positive
from acgsperf.asgi.credentials import DEFAULT_CREDENTIALS
from acgsperf.asgi.exchange import AddedHeaders, Exchange
from acgsperf.asgi.freshness import FreshnessOptions
from acgsperf.asgi.gate import Gate
from acgsperf.asgi.response_cache import ResponseCache
from acgsperf.asgi.routes import Routes
from acgsperf.asgi.serving import Serving
from acgsperf.asgi.types import App, Message, Receive, Scope, Send
from acgsperf.cache.arguments import checked_number
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
        require_hash: also refuse requests without the header, except CORS preflights.
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
        if not metrics_path.startswith("/"):
            raise ValueError(f"metrics_path must begin with /, got {metrics_path!r}")
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
        self._routes = Routes(max_routes)
        self._responses: ResponseCache | None = None
        self._serving: Serving | None = None
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
        # Without a gate and a metrics page, this answers every request.
        serving = self._serving if self._gate is None and self._metrics is None else None
        self._answer = None if serving is None else serving.answer

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
        if cached is None:
            return HttpCounts(refused, 0, 0, 0, 0)
        return HttpCounts(refused, cached.hits, cached.misses, cached.bypassed, cached.stored)

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
            await self._app(scope, self._lifespan(receive) if scope["type"] == "lifespan" else receive, send)
            return
        started_ns = time.perf_counter_ns()
        if self._answer is not None:
            await self._answer(scope, receive, send, started_ns)
        elif self._metrics is not None and scope["path"] == scope.get("root_path", "") + self._metrics_path:
            content_type, body = self._metrics()
            await _respond(scope, send, 200, content_type, body)
        elif self._gate is not None and (refusal := self._gate.refusal(scope)) is not None:
            await _respond(scope, send, 403, "application/json", refusal)
        elif self._serving is not None:
            await self._serving.answer(scope, receive, send, started_ns)
        else:
            await Exchange(scope, send, self._added, self._routes, started_ns).run(self._app, receive)

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
