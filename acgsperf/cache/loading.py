"""What a miss costs and who pays for it: single flight, stale values meanwhile, loads behind the caller's back."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from acgsperf.cache.l1 import MISSING, Local
from acgsperf.cache.lower_tiers import Behind
from acgsperf.cache.process_lock import ProcessLock
from acgsperf.cache.single_flight import Flight, Flights
from acgsperf.cache.staleness import Staleness
from acgsperf.dispatch import LRUCache
from acgsperf.errors import LoadTimeoutError
from acgsperf.tiers.base import Entry

__all__ = ["Loading"]

_LoaderOfMany = Callable[[list[str]], Awaitable[Mapping[str, Any]]]


class _Found:
    """What one call has for its keys so far: values to give, and entries that are due or stale.

    Args:
        began_at: the number of the latest write when it began.
    """

    __slots__ = ("began_at", "due", "stale", "values")

    def __init__(self, began_at: int) -> None:
        self.began_at = began_at
        self.values: dict[str, Any] = {}
        self.due: dict[str, Entry] = {}
        self.stale: dict[str, Entry] = {}


class Loading:
    """`get_or_load` and `get_or_load_many`, after L1 has missed."""

    def __init__(self, local: Local[Any], behind: Behind, staleness: Staleness, lock: ProcessLock | None) -> None:
        self._local = local
        self._behind = behind
        self._staleness = staleness
        self._lock = lock
        self.flights: Final = Flights(staleness.hard_timeout, self._failed)
        clock = local.clock
        # Keys whose load failed a moment ago; there for those that a stale value can be given for.
        self._failures: LRUCache[str, bool] = LRUCache(local.l1.maxsize, clock=clock)
        self.loads = 0
        self.load_errors = 0
        self.load_timeouts = 0
        self.joined = 0
        self.missed = 0
        self.refreshes = 0
        self.stale_served = 0
        self.negative_hits = 0

    def held(self, key: str) -> Entry | None:
        """What is kept beside L1: negative, stale, or fresh and due."""
        entry = self._local.beside(key)
        if entry is not None and entry.negative:
            self.negative_hits += 1
        return entry

    def overtake(self, key: str) -> None:
        """A write of a key."""
        self._failures.pop(key, None)
        self.flights.overtake(key)

    async def load(
        self, keys: Sequence[str], loader: _LoaderOfMany, entry_of: Callable[[Any], Entry], tags: tuple[str, ...]
    ) -> dict[str, Any]:
        """The values of keys that L1 has missed.

        Args:
            keys: different ones.
            loader: called with those that are to be loaded.
            entry_of: makes the entry of a loaded value.
            tags: of these entries.
        """
        found = _Found(self._behind.ordering.latest)
        unknown = self._look_beside(keys, found)
        held = {*found.due, *found.stale}
        if unknown:
            self._take_in(await self._read(unknown), unknown, found)
        # Nothing is awaited from here on until the load is known to all.
        waits = self._join_or_begin(keys, found, held, loader, entry_of, tags)
        if waits:
            await self._wait(waits, found.stale)
            self._collect(waits, found)
        for key, entry in found.stale.items():
            if key not in found.values:
                self.stale_served += 1
                found.values[key] = entry.value
        return {key: found.values[key] for key in keys}

    def _look_beside(self, keys: Sequence[str], found: _Found) -> list[str]:
        """Sort in what this process has; the keys that it knows nothing of, and that are not being loaded."""
        unknown = []
        for key in keys:
            entry = self.held(key)
            flight = self.flights.get(key)
            if entry is None and flight is not None:
                entry = flight.stale.get(key)
            if entry is not None:
                self._sort(key, entry, found)
            elif flight is None:
                unknown.append(key)
        return unknown

    def _take_in(self, read: Mapping[str, Entry], keys: Sequence[str], found: _Found) -> None:
        """Sort in what the tiers had of some keys, and what has come to L1 meanwhile."""
        for key, entry in read.items():
            self._sort(key, entry, found)
        for key in keys:
            if key not in found.values:
                # Another caller's load may have landed meanwhile.
                self._look_again(key, found.values)

    def _join_or_begin(
        self,
        keys: Sequence[str],
        found: _Found,
        held: set[str],
        loader: _LoaderOfMany,
        entry_of: Callable[[Any], Entry],
        tags: tuple[str, ...],
    ) -> dict[Flight, list[str]]:
        """Find or start a flight for every key that needs one; those to wait for, with their keys."""
        wanted = [key for key in keys if key not in found.values and not self._is_put_off(key, found.stale)]
        refreshed = [key for key in found.due if self.flights.get(key) is None and key not in self._failures]
        joined = {key: flight for key in wanted if (flight := self.flights.get(key)) is not None}
        begun = [key for key in wanted if key not in joined] + refreshed
        own = self._begin(begun, self._for_others(found), held, loader, entry_of, tags) if begun else None
        if own is not None and refreshed:
            own.detached = True
            self.refreshes += len(refreshed)
        waits: dict[Flight, list[str]] = {}
        for key in wanted:
            flight = joined.get(key, own)
            assert flight is not None
            if key in found.stale and self._staleness.soft_timeout == 0:
                flight.detached = True
                self.refreshes += flight is own
            else:
                waits.setdefault(flight, []).append(key)
                self.joined += flight is not own
        return waits

    def _for_others(self, found: _Found) -> dict[str, Entry]:
        """What those who come later may be given meanwhile: nothing that a write has overtaken."""
        return {
            key: entry
            for key, entry in {**found.due, **found.stale}.items()
            if self._behind.ordering.stands(found.began_at, key, entry.tags)
        }

    def _collect(self, waits: Mapping[Flight, Sequence[str]], found: _Found) -> None:
        """Take what was waited for; its error, unless there is a stale value."""
        for flight, keys in waits.items():
            for key in keys:
                if key not in found.stale or (flight.done.done() and not flight.failed):
                    self.missed += key in flight.asked
                    found.values[key] = flight.result(key)

    def _sort(self, key: str, entry: Entry, found: _Found) -> None:
        if not self._staleness.is_fresh(entry):
            found.stale[key] = entry
            return
        found.values[key] = entry.value
        if self._staleness.is_due(entry):
            found.due[key] = entry

    def _look_again(self, key: str, values: dict[str, Any]) -> None:
        value: Any = self._local.l1.peek(key, MISSING)
        if value is not MISSING:
            values[key] = value
        elif (entry := self._local.beside(key)) is not None and self._staleness.is_fresh(entry):
            values[key] = entry.value

    def _is_put_off(self, key: str, stale: Mapping[str, Entry]) -> bool:
        return key in stale and key in self._failures and self.flights.get(key) is None

    async def _read(self, keys: Sequence[str]) -> dict[str, Entry]:
        if len(keys) > 1:
            return await self._behind.read_many(keys)
        entry = await self._behind.read(keys[0])
        return {} if entry is None else {keys[0]: entry}

    def _begin(
        self,
        keys: Sequence[str],
        entries: Mapping[str, Entry],
        held: set[str],
        loader: _LoaderOfMany,
        entry_of: Callable[[Any], Entry],
        tags: tuple[str, ...],
    ) -> Flight:
        """One flight for keys that are not being loaded yet; `entries` are what may be given meanwhile."""

        async def load(flight: Flight) -> dict[str, Any]:
            values: dict[str, Any] = {}
            # What this process has kept may have been loaded by another since.
            kept = [key for key in keys if key in held]
            if kept:
                for key, entry in (await self._read(kept)).items():
                    if not self._staleness.is_due(entry):
                        values[key] = self._take(flight, key, entry)
            asked = [key for key in keys if key not in values]
            if self._lock is not None and len(asked) == 1:
                return values | await self._load_alone(self._lock, flight, asked[0], loader, entry_of)
            if asked:
                entries = await self._ask(flight, asked, loader, entry_of)
                values |= {key: self._keep(flight, key, entry) for key, entry in entries.items()}
            return values

        return self.flights.start(keys, load, tags, {key: entries[key] for key in keys if key in entries})

    async def _ask(
        self, flight: Flight, keys: list[str], loader: _LoaderOfMany, entry_of: Callable[[Any], Entry]
    ) -> dict[str, Entry]:
        """What the loader has for keys; those that it does not have are left out, unless that is remembered."""
        self.loads += 1
        flight.asked.update(keys)
        loaded = await loader(keys)
        if not isinstance(loaded, Mapping):
            raise TypeError(f"a loader of many must return a mapping, not {type(loaded).__name__}")
        entries = {}
        for key in keys:
            if loaded.get(key) is None and self._staleness.negative_ttl is not None:
                entries[key] = self._staleness.negative()
            elif key in loaded:
                entries[key] = entry_of(loaded[key])
        return entries

    async def _load_alone(
        self,
        lock: ProcessLock,
        flight: Flight,
        key: str,
        loader: _LoaderOfMany,
        entry_of: Callable[[Any], Entry],
    ) -> dict[str, Any]:
        """What no other process loads at the same time, or what one has just loaded."""
        async with lock.turn(key, self._look_behind) as turn:
            if turn.entry is not None:
                return {key: self._take(flight, key, turn.entry)}
            entry = (await self._ask(flight, [key], loader, entry_of)).get(key)
            if entry is None:
                return {}
            if turn.is_over:
                newer = await self._look_behind(key)
                if newer is not None:
                    return {key: self._take(flight, key, newer)}
            if key in flight.keys and self._shares(entry):
                self._take(flight, key, entry)
                # Before the lock is given back, or the next who holds it finds nothing.
                await self._behind.put_and_wait(key, entry)
                return {key: entry.value}
            return {key: self._take(flight, key, entry)}

    async def _look_behind(self, key: str) -> Entry | None:
        entry = await self._behind.read(key)
        return None if entry is None or self._staleness.is_due(entry) else entry

    def _shares(self, entry: Entry) -> bool:
        # Of negative entries the tiers have no more than the processes can hold: strangers choose their keys.
        return not entry.negative or self._local.has_room_for_negatives

    def _keep(self, flight: Flight, key: str, entry: Entry) -> Any:
        """An entry that was loaded goes to every tier, unless a write has overtaken the load."""
        if key in flight.keys and self._shares(entry):
            self._behind.put(key, entry)
        return self._take(flight, key, entry)

    def _take(self, flight: Flight, key: str, entry: Entry) -> Any:
        """An entry goes to L1, under the same condition."""
        if key in flight.keys:
            self._failures.pop(key, None)
            self._local.put(key, entry)
        return entry.value

    async def _wait(self, waits: Mapping[Flight, Sequence[str]], stale: Mapping[str, Entry]) -> None:
        hurried = [flight for flight, keys in waits.items() if all(key in stale for key in keys)]
        patient = [flight for flight in waits if flight not in hurried]
        endless = [*patient, *hurried] if self._staleness.soft_timeout is None else patient
        with self.flights.waiting(waits, endless):
            # Unlike an await, neither a time-out nor a cancellation here reaches what is waited for.
            if patient:
                await asyncio.wait([flight.done for flight in patient])
            if hurried:
                await asyncio.wait([flight.done for flight in hurried], timeout=self._staleness.soft_timeout)
            for flight in hurried:
                if not flight.done.done():
                    flight.detached = True
                    self.refreshes += 1

    def _failed(self, flight: Flight, error: BaseException) -> None:
        self.load_errors += 1
        self.load_timeouts += isinstance(error, LoadTimeoutError)
        if self._staleness.retry_after > 0:
            for key in flight.keys & flight.stale.keys():
                self._failures.set(key, True, ttl=self._staleness.retry_after)
