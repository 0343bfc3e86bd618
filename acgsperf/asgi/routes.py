"""Latencies by route."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from acgsperf import hooks
from acgsperf.asgi.types import Scope
from acgsperf.dispatch import LatencyHistogram

__all__ = ["HIGHEST_NS", "OTHER", "Routes", "route_of"]

OTHER: Final = "other"
_MAX_ROUTE: Final = 200
# Uses a tenth of the memory and of the export time of the default layout.
_LAYOUT: Final = {"lowest_ns": 1_000, "significant_figures": 2}
HIGHEST_NS: Final = LatencyHistogram(**_LAYOUT).highest_ns
# If no route matches, the client has chosen the path freely: it must not create a route of its own.
_UNROUTED: Final = frozenset({404, 405})


class Routes:
    """Latencies of a bounded number of routes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._latencies: dict[str, LatencyHistogram] = {}
        # The methods `record` of these: looking up the attribute costs as much as the rest of `record`.
        self._records: dict[str, Callable[[int], None]] = {}
        # For each (route, pool) the number of connections that requests have used, and the ns of their use.
        self.connection_uses: dict[tuple[str, str], tuple[int, int]] = {}

    @contextmanager
    def counting_connections(self, route: Callable[[], str]) -> Iterator[None]:
        """Return a context for a call of the application, in which the connections that it uses are counted.

        Args:
            route: called at the end or later, when the route is known and its latency is recorded.
        """
        uses = _Uses(self, route)
        token = hooks.connection_uses.set(uses)
        try:
            yield
        finally:
            hooks.connection_uses.reset(token)
            # Not earlier, because a framework may return connections after the response has ended.
            uses.end()

    def note_connections(self, route: str, uses: Mapping[str, tuple[int, int]]) -> None:
        """Count the connections that a request has used. Call it after the latency of the request is recorded."""
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
        self.recorder(route)(min(elapsed_ns, HIGHEST_NS))

    def recorder(self, route: str) -> Callable[[int], None]:
        """Return what gets the latencies of a route, in ns and at most HIGHEST_NS."""
        record = self._records.get(route)
        if record is not None:
            return record
        if len(self._latencies) - (OTHER in self._latencies) >= self._most:
            route = OTHER
        latency = self._latencies.setdefault(route, LatencyHistogram(**_LAYOUT))
        self._records[route] = latency.record
        return latency.record


class _Uses:
    """The connections that a request uses: for each pool their number and the ns of their use.

    After the request has ended, each one is counted at once. A task of the request may still use some, for example a
    load whose caller has got a stale value.
    """

    __slots__ = ("_ended", "_route", "_routes", "_uses")

    def __init__(self, routes: Routes, route: Callable[[], str]) -> None:
        self._routes = routes
        self._route = route
        self._uses: dict[str, tuple[int, int]] = {}
        self._ended = False

    def note(self, pool: str, used_ns: int) -> None:
        if self._ended:
            self._routes.note_connections(self._route(), {pool: (1, used_ns)})
        else:
            number, total_ns = self._uses.get(pool, (0, 0))
            self._uses[pool] = (number + 1, total_ns + used_ns)

    def end(self) -> None:
        self._ended = True
        if self._uses:
            self._routes.note_connections(self._route(), self._uses)


def route_of(scope: Scope, status: int) -> str:
    """Return the route of a request that the application has answered."""
    template = getattr(scope.get("route"), "path", None)
    if not isinstance(template, str):
        # A path that is not valid UTF-8 may contain surrogates, which neither a tier nor a metrics page can encode.
        return OTHER if status in _UNROUTED else str(scope["path"])[:_MAX_ROUTE].encode(errors="replace").decode()
    # A mounted application: its mount path has been moved from the path to the root path.
    mounted = scope.get("root_path", "")[len(scope["app_root_path"]) :] if "app_root_path" in scope else ""
    return (template if mounted.endswith(template) else mounted + template)[:_MAX_ROUTE]
