"""`Dashboard`: an ASGI application with a live page of the figures of a service."""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from acgsperf._native.arguments import checked_bool, checked_positive
from acgsperf.asgi.types import Message, Receive, Scope, Send
from acgsperf.dashboard.assets import assets
from acgsperf.dashboard.broadcast import Broadcast
from acgsperf.dashboard.fleet_source import FleetSource
from acgsperf.dashboard.invalidation import Invalidation, checked_token
from acgsperf.dashboard.service_source import ServiceSource
from acgsperf.dashboard.shutdown import server_is_ending
from acgsperf.dashboard.sources import SnapshotSource
from acgsperf.dashboard.viewers import Viewer
from acgsperf.fleet.store import ReportStore
from acgsperf.metrics.source import Caches, HttpSource, MetricsSource, Pools
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from acgsperf.trends.store import TrendStore

__all__ = ["Dashboard"]

_PAGE: Final = "index.html"
_INTERVAL_S: Final = 1.0
# The instances leave a report every 30 s by default.
_FLEET_INTERVAL_S: Final = 5.0
# A viewer to which nothing can be sent for so long is dropped.
_SEND_TIMEOUT_S: Final = 10.0
# The history may have 400 kB, which take a slow viewer longer than that. So it is sent in parts.
_PART_BYTES: Final = 16 << 10
_HEADERS: Final = [
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_log: Final = logging.getLogger("acgsperf.dashboard")


class Dashboard:
    """An ASGI application with a live page of latencies, caches, pools, alerts and hot keys.

    Mount it below any path, or pass it to the middleware: `PerformanceMiddleware(dashboard=...)`. The page works behind
    a proxy that adds or removes a prefix of the path. It loads nothing from outside of the package.

    The page shows no requests, no values and no passwords. Everybody who can reach it can read it: mount it where your
    application checks who asks, or on a port of its own.

    Without a viewer it does nothing. With viewers, it takes one snapshot per second for all of them.

    Args:
        service: the service whose figures, caches, pools and alerts to show; or None.
        cache, pools, http: what else to show, see `PerformanceCollector`.
        fleet: a store of reports, see `acgsperf.fleet.store_of`: shows all instances of a service together, and one by
            one, instead of this process. The dashboard opens and closes it. It excludes the other arguments but
            `trends`, `name` and `interval`.
        trends: a `TrendStore`: where the hours of the fleet are. The dashboard opens and closes it.
        source: shows something else than this process. It excludes the arguments before, and `name`, `hot_keys` and
            `show_keys`.
        name: what the page calls it; by default the namespace of the first cache.
        hot_keys: whether to sample, for the viewers, the keys that are read most often. True by default.
        show_keys: whether to show these keys themselves. By default the page shows digests of them.
        token: allows the viewers that know it to remove keys and tags from the caches. At least 16 printable ASCII
            characters. None (default): nobody can.
        interval: the seconds between two snapshots: 1 by default, or 5 for a fleet.

    Raises:
        TypeError, ValueError: if an argument has the wrong type, or is out of bounds; or if there is nothing to show.
    """

    def __init__(
        self,
        service: MetricsSource | None = None,
        *,
        cache: Caches = (),
        pools: Pools = (),
        http: HttpSource | None = None,
        fleet: ReportStore | None = None,
        trends: "TrendStore | None" = None,
        source: SnapshotSource | None = None,
        name: str | None = None,
        hot_keys: bool = True,
        show_keys: bool = False,
        token: str | None = None,
        interval: float | None = None,
    ) -> None:
        if fleet is not None:
            if any(given for given in (service, cache, pools, http, source, token)):
                raise TypeError("fleet excludes service, cache, pools, http, source and token")
            if not isinstance(fleet, ReportStore):
                raise TypeError(f"fleet must be a ReportStore or None, got {fleet!r:.100}")
            source = FleetSource(fleet, trends=trends, name=name)
        elif trends is not None:
            raise TypeError("trends needs fleet; a service shows its own hours")
        elif source is None:
            source = ServiceSource(
                service,
                cache=cache,
                pools=pools,
                http=http,
                name=name,
                hot_keys=checked_bool("hot_keys", hot_keys),
                show_keys=checked_bool("show_keys", show_keys),
            )
        elif not isinstance(source, SnapshotSource):
            raise TypeError(f"source must be a SnapshotSource or None, got {source!r:.100}")
        elif any(given for given in (service, cache, pools, http, name)):
            raise TypeError("source excludes service, cache, pools, http and name")
        checked = checked_token(token)
        self._source = source
        self._invalidation = None if checked is None else Invalidation(source, checked)
        self._broadcast = Broadcast(source, _checked_interval(interval, fleet), server_is_ending)

    @property
    def viewers(self) -> int:
        """The number of viewers now."""
        return self._broadcast.viewers

    def add_http(self, http: HttpSource) -> None:
        """Show the routes of a middleware. `PerformanceMiddleware(dashboard=...)` calls it."""
        if isinstance(self._source, ServiceSource):
            self._source.add_http(http)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = _path_below(scope), scope["method"]
        if path == "/invalidate" and self._invalidation is not None:
            if method != "POST":
                await _refuse(scope, send, 405, b"POST")
            else:
                status, body = await self._invalidation.answer(scope, receive)
                await _respond(scope, send, status, b"application/json", body)
        elif method not in ("GET", "HEAD"):
            await _refuse(scope, send, 405, b"GET, HEAD")
        elif path == "":
            # The page's own addresses are relative to its folder. So is this one, because a proxy may add a prefix.
            location = quote(scope["path"].rpartition("/")[2]).encode() + b"/"
            await _respond(scope, send, 307, b"text/plain", b"", [(b"location", location)])
        elif path == "/events" and method == "GET":
            await self._stream(scope, receive, send)
        elif path == "/trends":
            found = await self._broadcast.trends()
            if found is None:
                await _respond(scope, send, 409, b"text/plain", b"nobody views the page\n")
            else:
                await _respond(scope, send, 200, b"application/json", found)
        elif path == "/about":
            about = {
                "caches": list(self._source.cache_names()) if self._invalidation is not None else [],
                "can_invalidate": self._invalidation is not None,
            }
            await _respond(scope, send, 200, b"application/json", msgspec.json.encode(about))
        else:
            await _serve_file(scope, send, path.removeprefix("/") or _PAGE)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        # nginx would keep the events until its buffer is full.
        headers += [(b"x-accel-buffering", b"no"), *_HEADERS]
        client = scope.get("client")
        async with self._broadcast.viewer(client[0] if client else None) as viewer:
            leaving = asyncio.create_task(_end_when_gone(viewer, receive), name="acgsperf dashboard: a viewer")
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                event: bytes | None = b"retry: 1000\n\n" + self._broadcast.history()
                while event is not None:
                    await _send_in_parts(event, viewer, send)
                    event = await viewer.next()
                async with time_limit(_SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": b""})
            except TimeoutError:
                _log.info("dashboard: nothing could be sent to a viewer for %g s; it is dropped", _SEND_TIMEOUT_S)
            except OSError:
                # What some servers raise if the viewer has left.
                pass
            finally:
                leaving.cancel()
                with suppress(asyncio.CancelledError):
                    await leaving


async def _send_in_parts(event: bytes, viewer: Viewer, send: Send) -> None:
    """Send an event, or the beginning of it if the viewer is finished meanwhile. A browser ignores half an event.

    A viewer that has to leave gets all other parts within one time limit.

    Raises:
        TimeoutError: if a part cannot be sent in time.
    """
    loop = asyncio.get_running_loop()
    for start in range(0, len(event), _PART_BYTES):
        if viewer.finished:
            return
        async with time_limit(min(loop.time(), viewer.ended_at) + _SEND_TIMEOUT_S - loop.time()):
            await send({"type": "http.response.body", "body": event[start : start + _PART_BYTES], "more_body": True})


def _checked_interval(interval: float | None, fleet: ReportStore | None) -> float:
    if interval is None:
        return _INTERVAL_S if fleet is None else _FLEET_INTERVAL_S
    return checked_positive("interval", interval)


async def _end_when_gone(viewer: Viewer, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.end()


def _path_below(scope: Scope) -> str:
    """Return the path below the one at which the dashboard is mounted. Old frameworks remove that one themselves."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :]
    return path


async def _serve_file(scope: Scope, send: Send, name: str) -> None:
    asset = assets().get(name)
    if asset is None:
        await _respond(scope, send, 404, b"text/plain", b"not found\n")
        return
    headers = [(b"etag", asset.etag), (b"cache-control", b"no-cache")]
    if dict(scope["headers"]).get(b"if-none-match") == asset.etag:
        await send({"type": "http.response.start", "status": 304, "headers": [*headers, *_HEADERS]})
        await send({"type": "http.response.body", "body": b""})
        return
    await _respond(scope, send, 200, asset.content_type, asset.body, headers)


async def _refuse(scope: Scope, send: Send, status: int, allowed: bytes) -> None:
    await _respond(scope, send, status, b"text/plain", b"method not allowed\n", [(b"allow", allowed)])


async def _respond(
    scope: Scope,
    send: Send,
    status: int,
    content_type: bytes,
    body: bytes,
    more_headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        *(more_headers or [(b"cache-control", b"no-store")]),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _live(receive: Receive, send: Send) -> None:
    """Take part in the lifespan of a server that serves the dashboard alone."""
    while True:
        message: Message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
