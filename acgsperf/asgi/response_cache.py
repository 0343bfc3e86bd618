"""A shared HTTP cache in a `TieredCache`: finds, stores, freshens and removes responses (RFC 9111)."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, Final

from acgsperf.asgi.credentials import checked_names
from acgsperf.asgi.fields import Headers, joined
from acgsperf.asgi.flights import Flights
from acgsperf.asgi.freshness import Freshness, FreshnessOptions, Timing, freshness_of
from acgsperf.asgi.ranges import part_in
from acgsperf.asgi.recording import Recording
from acgsperf.asgi.request import READ_HEADERS, CacheableRequest
from acgsperf.asgi.stored import Stored, cell_of, headers_to_store, opened
from acgsperf.asgi.tags import tag_named, tags_in
from acgsperf.asgi.uri import Target, path_tag, related, target_of, target_with_host
from acgsperf.asgi.validators import freshened, is_validated, validators_of
from acgsperf.asgi.variants import index_of, key_of, sets_in, varying_on
from acgsperf.cache import TieredCache, Written
from acgsperf.cache.pending import PendingLoad
from acgsperf.cache.values import UNCHECKED
from acgsperf.errors import CacheError, TierError

__all__ = ["CLOCK_TOLERANCE_S", "ResponseCache", "Use"]

_log: Final = logging.getLogger("acgsperf.asgi")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# If a response was stored later than now, by more than this, a clock was set back, and the age is not known.
CLOCK_TOLERANCE_S: Final = 5.0
_MAX_TARGETS: Final = 4_096
# The suffix of the key of a stored part.
_PART: Final = " part"
# How often the steady clock reads the wall clock.
_COMPARED_EVERY_S: Final = 0.1


class Use(IntEnum):
    """What a stored response can do for a request."""

    NONE = 0
    """It does not answer. The application may validate it."""
    WHILE_REVALIDATE = 1
    """It answers, and has to be revalidated in the background."""
    ANSWER = 2
    """It answers."""


class SteadyClock:
    """A wall clock that never goes back, because a step back would make responses younger."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()
        self._compared_until = 0.0

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        ticks = time.monotonic()
        if ticks >= self._compared_until:
            self._compared_until = ticks + _COMPARED_EVERY_S
            self._offset = max(self._offset, time.time() - ticks)
        return ticks + self._offset


class ResponseCache:
    """Stores responses to GET in a `TieredCache`, by scheme, host, path, query and the headers they vary on.

    Args:
        cache: a cache that its owner opens and closes; others may use it too.
        freshness: applies to responses whose headers do not say how long they may be used.
        vary: request headers on which every response depends, in addition to its `Vary` header.
        credentials: request headers that contain credentials, in addition to `Authorization` and `Cookie`.
        max_body_bytes: larger bodies are not stored.
        not_stored: the names of response headers that are not stored.
        clock: returns seconds since the epoch.

    Attributes:
        flights: the calls of the application in flight.
        now: returns the seconds since the epoch by which ages are measured.
        ticks: returns seconds since an arbitrary time, and is cheaper than `now`.
        read_headers: the names of the request headers that the cache reads.
        targets: the targets of recent requests, by raw path, query, host and scheme.
        get_local: looks in L1.
        hits, misses, bypassed, stored: the counts so far, without the hits of the fast path.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        freshness: FreshnessOptions,
        vary: Iterable[str],
        credentials: Iterable[str],
        max_body_bytes: int,
        not_stored: frozenset[bytes],
        clock: Callable[[], float],
    ) -> None:
        if not isinstance(cache, TieredCache):
            raise TypeError(f"cache must be a TieredCache or None, got {type(cache).__name__}")
        if cache.value_type is not None:
            raise TypeError(f"cache must have no value_type, because it gets responses, got {cache!r}")
        self.cache = cache
        self.flights: Final = Flights()
        self.max_body_bytes = max_body_bytes
        self.wall = clock
        self.now: Final = SteadyClock() if clock is time.time else clock
        self.ticks: Final = time.monotonic if clock is time.time else clock
        self._freshness = freshness
        self._vary = tuple(sorted(checked_names("vary", vary)))
        secrets = checked_names("credentials", credentials)
        self._exact = secrets | {b"authorization", b"cookie"}
        self.read_headers: Final = READ_HEADERS | secrets
        self._not_stored = not_stored
        self.get_local: Final = cache.get_local
        # The targets of recent requests: normalising one costs more than the rest of a hit.
        self.targets: Final[dict[tuple[object, ...], Target]] = {}
        self.hits = self.misses = self.bypassed = 0
        self.stored: int = 0

    def request(self, scope: Mapping[str, Any]) -> CacheableRequest:
        """Return the request of a scope; its method is GET or HEAD."""
        headers: Headers = scope["headers"]
        read = self.read_headers
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in read:
                found.setdefault(name, []).append(value)
        host = b", ".join(found.pop(b"host", ()))
        target = self._target(scope, host)
        root = key_of(target.uri, self._vary, headers, self._exact) if self._vary else target.uri
        request = CacheableRequest(target, root, headers, scope["method"] == "HEAD")
        if found:
            request.read({name: b", ".join(values) for name, values in found.items()})
        if target.bypasses:
            request.bypasses = True
        return request

    def _target(self, scope: Mapping[str, Any], host: bytes) -> Target:
        raw = (scope.get("raw_path"), scope.get("query_string", b""), host, scope.get("scheme", "http"))
        target = self.targets.get(raw)
        if target is None:
            target = target_with_host(scope, host)
            # Without `raw_path`, the path is not in this key. With `vary`, the URI is not the key of a response.
            if raw[0] and not target.bypasses and not self._vary:
                if len(self.targets) >= _MAX_TARGETS:
                    self.targets.clear()
                self.targets[raw] = target
        return target

    def local(self, request: CacheableRequest) -> Stored | None:
        """Return what L1 has for a request, fresh or not."""
        cell = self.get_local(request.root)
        if cell is None:
            return None
        stored = opened(cell)
        if stored is None:
            return self._newest_of(request, map(self.get_local, self._listed_keys(request, cell)))
        return stored if request.is_plain or request.reach(()) <= stored.reach else self._if_allowed(request, stored)

    async def find(self, request: CacheableRequest) -> Stored | None:
        """Return what the tiers have for a request, fresh or not."""
        stored = await self._find_whole(request)
        return await self._find_part(request) if stored is None and request.range is not None else stored

    async def _find_part(self, request: CacheableRequest) -> Stored | None:
        """Return the fresh part that the tiers have, if it contains the range of the request."""
        stored = opened(await self.cache.get(request.root + _PART))
        if stored is None or stored.part is None or request.range is None or request.is_conditional:
            return None
        if self.use_of(stored, request, self.now()) is not Use.ANSWER:
            return None
        covered = stored.part.covers(request.range, len(stored.body))
        return None if covered is None else self._if_allowed(request, stored)

    async def _find_whole(self, request: CacheableRequest) -> Stored | None:
        cell = await self.cache.get(request.root)
        if cell is None:
            return None
        stored = opened(cell)
        if stored is not None:
            return self._if_allowed(request, stored)
        keys = self._listed_keys(request, cell)
        if len(keys) == 1:
            return self._newest_of(request, [await self.cache.get(keys[0])])
        found = await self.cache.get_many(keys) if keys else {}
        return self._newest_of(request, map(found.get, keys))

    def use_of(self, stored: Stored, request: CacheableRequest, now: float) -> Use:
        """Return what a stored response can do for a request, at the time `now`."""
        age = now - stored.born_at
        if (
            not request.uses_stored
            or stored.no_cache
            or age > request.max_age
            or (stored.kept_for > 0 and now < stored.stored_at - CLOCK_TOLERANCE_S)
        ):
            return Use.NONE
        if age + request.min_fresh < stored.lifetime:
            return Use.ANSWER
        if request.min_fresh:
            return Use.NONE
        stale_for = age - stored.lifetime
        if stale_for < stored.while_revalidate:
            return Use.WHILE_REVALIDATE
        return Use.ANSWER if stale_for < request.max_stale and not stored.must_revalidate else Use.NONE

    def answers_after_error(self, stored: Stored, now: float) -> bool:
        """Return whether a response may be used without validation because the application failed (RFC 5861, 4)."""
        return 0 < stored.if_error > now - stored.born_at - stored.lifetime

    async def begin(self, request: CacheableRequest) -> PendingLoad:
        """Prepare to store the response to a GET. Call it before the application computes the response.

        `store` uses what is observed here. If any worker invalidates the URI in the meantime, the response may be out
        of date, and is not stored.
        """
        keys = [request.root, *self._variant_keys(request)]
        if request.range is not None:
            keys.append(request.root + _PART)
        return await PendingLoad.begin(self.cache, keys, (request.target.uri, request.target.path))

    def record(self, request: CacheableRequest, status: int, headers: Headers, requested_at: float) -> Recording:
        """Start recording a response with its status and headers."""
        varying = varying_on(headers)
        timing = Timing(requested_at, self.now(), self.wall())
        freshness = freshness_of(status, headers, timing, self._freshness)
        part, answers_all = None, status != 206
        if request.range is not None:
            # Another status may be due to the range, like 416, and would then answer requests for the whole.
            answers_all = status == 200
            if status == 206 and varying == ():
                part = part_in(joined(headers, b"content-range"), request.range)
        if freshness is None or varying is None or not request.target.storable or not (answers_all or part):
            return Recording(status, headers, None, (), 0)
        if request.reach(self._vary + varying) > freshness.reach or not self._is_kept(freshness, headers, timing):
            return Recording(status, headers, None, varying, 0)
        return Recording(status, headers, freshness, varying, self.max_body_bytes, part)

    def response_of(self, recording: Recording, route: str) -> Stored | None:
        """Return a response that was recorded; None if it is not complete, or if it must not be stored."""
        if recording.freshness is None or not recording.is_complete:
            return None
        status, headers, body = recording.status, recording.headers, recording.body()
        if status != 204 and joined(headers, b"content-length") is None:
            # The length of a stream is known now. With it, a client can show progress and detect a truncated body.
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        response = self._stored(status, headers, body, recording.freshness, recording.varying, route)
        response.part = recording.part
        return response

    def response_key(self, request: CacheableRequest, response: Stored) -> str:
        """Return the key of the response to a request."""
        if response.part is not None:
            return request.root + _PART
        if response.varying or request.sets:
            return key_of(request.root, response.varying, request.headers, self._exact)
        return request.root

    def answers(self, request: CacheableRequest, response: Stored, key: str) -> bool:
        """Return whether the response to another request answers this one.

        Args:
            request: this request.
            response: the response, which may not be stored yet.
            key: its key.
        """
        return (
            self._if_allowed(request, response) is not None
            and self.response_key(request, response) == key
            and self.use_of(response, request, self.now()) is Use.ANSWER
        )

    async def freshen(
        self,
        request: CacheableRequest,
        load: PendingLoad | None,
        stored: Stored,
        received: Headers,
        requested_at: float,
    ) -> tuple[Stored, bool]:
        """Update a stored response by a 304 of the application, and store it again if it may be stored.

        Returns:
            The response for the client, and whether it may answer other requests, too.
        """
        if not is_validated(stored.etag, validators_of(received)[0]):
            # The application means another response. Its answer is used once, and nothing is updated.
            await self.replace(request, load, stored, None)
            return stored, False
        headers = freshened(stored.headers, received)
        timing = Timing(requested_at, self.now(), self.wall())
        age = [(name, value) for name, value in received if name.lower() == b"age"]
        freshness = freshness_of(stored.status, [*headers, *age], timing, self._freshness)
        varying = varying_on(headers)
        if freshness is None or varying is None:
            await self.replace(request, load, stored, None)
            unusable = stored.freshness._replace(born_at=timing.received_at, lifetime=0)
            return self._stored(stored.status, headers, stored.body, unusable, stored.varying, stored.route), False
        response = self._stored(stored.status, headers, stored.body, freshness, varying, stored.route)
        may_answer = request.reach(self._vary + varying) <= freshness.reach
        await self.replace(request, load, stored, response if may_answer else None)
        return response, may_answer

    async def replace(
        self, request: CacheableRequest, load: PendingLoad | None, stale: Stored | None, response: Stored | None
    ) -> None:
        """Store the response to a request, and remove the stale one that it replaces (RFC 9111, 4.3.3).

        Args:
            request: the request.
            load: nothing is stored or removed if a write has superseded it; or without it.
            stale: what was stored; None if nothing was.
            response: what to store; None if it must not be stored.
        """
        if load is None:
            return
        if response is not None:
            await self._keep(request, load, response)
        if stale is None:
            return
        key = self.response_key(request, stale)
        if (response is None or self.response_key(request, response) != key) and load.is_current(key):
            try:
                await self.cache.delete(key)
            except CacheError:
                _log.info("response cache: closed before the response of %.200s was removed", request.target.uri)

    def is_current(self, request: CacheableRequest, load: PendingLoad | None, stored: Stored) -> bool:
        """Return whether no write since the beginning of a call has superseded what was stored then."""
        return load is None or load.is_current(self.response_key(request, stored), tags_in(stored.headers))

    async def invalidate(self, scope: Mapping[str, Any], headers: Headers) -> None:
        """Remove what an unsafe request that succeeded has changed (RFC 9111, 4.4)."""
        if scope["method"] not in _SAFE:
            target = target_of(scope)
            if not target.bypasses:
                await self.cache.invalidate_tag(target.uri)
            for uri in related(scope, headers):
                if uri != target.uri:
                    await self.cache.invalidate_tag(uri)

    async def purge(self, path: str | None, tag: str | None) -> Written:
        """Remove the responses of a path, or those with a tag."""
        if path is not None:
            return await self.cache.invalidate_tag(path_tag(path))
        assert tag is not None
        return await self.cache.invalidate_tag(tag_named(tag))

    def _listed_keys(self, request: CacheableRequest, cell: object) -> list[str]:
        """Return the keys of a request in the variants that a value of the cache lists; empty if it lists none."""
        index = sets_in(cell)
        if index is None:
            return []
        request.sets, request.sets_until = index
        keys = self._variant_keys(request)
        request.variant = keys[0]
        return keys

    def _newest_of(self, request: CacheableRequest, cells: Iterable[object]) -> Stored | None:
        newest = None
        for cell in cells:
            stored = opened(cell)
            # RFC 9111, 4.1: a response without `Vary` is used only if no other one matches.
            if stored is not None and (
                newest is None or (bool(stored.varying), stored.stored_at) > (bool(newest.varying), newest.stored_at)
            ):
                newest = stored
        return None if newest is None else self._if_allowed(request, newest)

    def _if_allowed(self, request: CacheableRequest, stored: Stored) -> Stored | None:
        return stored if request.reach(self._vary + stored.varying) <= stored.reach else None

    def _variant_keys(self, request: CacheableRequest) -> list[str]:
        return [key_of(request.root, names, request.headers, self._exact) for names in request.sets]

    def _is_kept(self, freshness: Freshness, headers: Headers, timing: Timing) -> bool:
        """Return whether a response that has just been received is young enough to be kept."""
        kept_for = self._kept_for(freshness, any(validators_of(headers)))
        return freshness.lifetime + kept_for > timing.received_at - freshness.born_at

    def _kept_for(self, freshness: Freshness, can_be_validated: bool) -> float:
        return max(freshness.while_revalidate, freshness.if_error, self._freshness.stale_ttl if can_be_validated else 0)

    def _stored(
        self,
        status: int,
        headers: Headers,
        body: bytes,
        freshness: Freshness,
        varying: tuple[bytes, ...],
        route: str,
    ) -> Stored:
        etag, last_modified = validators_of(headers)
        return Stored(
            status=status,
            headers=headers_to_store(headers, self._not_stored),
            body=body,
            born_at=freshness.born_at,
            lifetime=freshness.lifetime,
            stored_at=self.now(),
            kept_for=self._kept_for(freshness, etag is not None or last_modified is not None),
            no_cache=freshness.no_cache,
            must_revalidate=freshness.must_revalidate,
            while_revalidate=freshness.while_revalidate,
            if_error=freshness.if_error,
            reach=int(freshness.reach),
            etag=etag,
            last_modified=last_modified,
            varying=varying,
            route=route,
        )

    async def _keep(self, request: CacheableRequest, load: PendingLoad, response: Stored) -> None:
        """Store a response, unless something has superseded it since `begin`."""
        until = response.born_at + response.lifetime + response.kept_for
        ttl = until - response.stored_at
        if ttl <= 0:
            return
        key, values, ttls = self.response_key(request, response), dict[str, Any](), dict[str, float | None]()
        if response.part is None and key != request.root:
            until = max(until, request.sets_until)
            values[request.root] = index_of(request.sets, response.varying, until)
            ttls[request.root] = until - response.stored_at
        values[key], ttls[key] = cell_of(response), ttl
        tags = tags_in(response.headers)
        try:
            kept = await load.store(values, ttls, late_tags={key: tags} if tags else {}, codec=UNCHECKED)
        except (CacheError, TierError):
            # The client has its response already. An error now would only close its connection.
            _log.info("response cache: closed before the response of %.200s was stored", request.target.uri)
        else:
            self.stored += key in kept
