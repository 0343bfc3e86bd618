"""`get_or_load` after a miss in L1: join or start a load, and serve a stale value where the options allow it."""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from acgsperf import hooks
from acgsperf.cache.l1 import L1, MISSING, most_entries
from acgsperf.cache.lookup import Lookup
from acgsperf.cache.lower_tiers import LowerTiers, Seen
from acgsperf.cache.options import EntryOptions
from acgsperf.cache.process_lock import HeldLocks, ProcessLock
from acgsperf.cache.recent_loads import RecentLoads
from acgsperf.cache.results import LoadedEntries, load_entries
from acgsperf.cache.single_flight import BypassingLoad, Flight, Flights
from acgsperf.cache.source import Source
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.waits import WaitForProcesses, in_span
from acgsperf.dispatch import LRUCache
from acgsperf.errors import LoadTimeoutError
from acgsperf.tiers.base import Entry

if TYPE_CHECKING:
    from acgsperf.cache.prediction import Prefetch

__all__ = ["Loading"]

# No tier was asked.
_UNSEEN: Final = Seen(None, None)


class _Answers:
    """The values and entries that one call has found for its keys so far.

    Args:
        began_at: the number of the latest write when the call began.

    Attributes:
        values: the values to return.
        due_for_refresh: the fresh entries that are due for refresh.
        stale: the stale entries.
        seen: what the tiers had under the keys that have no fresh entry there.
    """

    __slots__ = ("began_at", "due_for_refresh", "seen", "stale", "values")

    def __init__(self, began_at: int) -> None:
        self.began_at = began_at
        self.values: dict[str, Any] = {}
        self.due_for_refresh: dict[str, Entry] = {}
        self.stale: dict[str, Entry] = {}
        self.seen: dict[str, Seen] = {}


class Loading:
    """Answers `get_or_load` and `get_or_load_many` when the `LRUCache` of L1 has missed.

    Args:
        namespace: names the cache in messages.
        l1: gets what was loaded.
        lower_tiers: get what was loaded.
        lookup: reads the lower tiers before the loader is called.
        staleness: decides which entries may be served, and how long a caller waits.
        lock: lets one process at a time load a key; None for no lock.

    Attributes:
        flights: the loads in flight.
        prefetch: has the entries of predicted keys; None without prediction.
    """

    def __init__(
        self,
        namespace: str,
        l1: L1[Any],
        lower_tiers: LowerTiers,
        lookup: Lookup,
        staleness: Staleness,
        lock: ProcessLock | None,
    ) -> None:
        self._namespace = namespace
        self._l1 = l1
        self._lower_tiers = lower_tiers
        self._lookup = lookup
        self._staleness = staleness
        self._lock = lock
        self.flights: Final = Flights(namespace, self._on_failure, staleness.clock, l1.has_been_silent_since)
        self.prefetch: Prefetch | None = None
        # The keys whose load failed less than `retry_after` ago, and that have a stale value to serve.
        self._failures: LRUCache[str, bool] = LRUCache(most_entries(l1.lru), clock=staleness.lru_clock)
        self._recent = RecentLoads(lower_tiers.ordering)
        self.loads: int = 0
        self.load_errors: int = 0
        self.load_timeouts: int = 0
        self.joined: int = 0
        self.missed: int = 0
        self.refreshes: int = 0
        self.stale_served: int = 0

    def supersede(self, key: str) -> None:
        """Supersede the load of a key by a write, and forget that the last one failed."""
        self._failures.pop(key, None)
        self.flights.supersede(key)

    async def load(self, keys: Sequence[str], source: Source) -> dict[str, Any]:
        """Return the values of distinct keys that the `LRUCache` has missed."""
        found = _Answers(self._lower_tiers.ordering.latest)
        unknown = [] if source.reload else self._look_in_this_process(keys, found, source)
        if source.local:
            found.seen = dict.fromkeys(keys, _UNSEEN)
        elif source.reload:
            if source.takes_previous:
                source.replaced = await self._present(keys, source)
            found.seen = await self._lookup.observe(keys, source.tags)
            for key in keys:
                # A load that is in flight began before this call.
                self.supersede(key)
        elif unknown:
            self._recent.begin(unknown)
            try:
                await self._look_in_tiers(unknown, found, source)
            finally:
                self._recent.end(unknown)
        # From here there is no await until the new load is registered: no other caller can start the same one.
        waits, own = self._join_or_start(keys, found, source)
        if waits:
            waiting: Awaitable[None] = self._wait(waits, found, source.options.soft_timeout)
            await (waiting if hooks.spans is None else in_span(waiting, self._namespace, waits, own, found.stale))
        for key, entry in found.stale.items():
            if key not in found.values:
                self.stale_served += 1
                found.values[key] = entry.value
        return {key: found.values[key] for key in keys}

    async def bypass(self, keys: Sequence[str], source: Source) -> dict[str, Any]:
        """Return the values of keys from the loader alone, and store nothing."""
        self.loads += 1
        try:
            entries, _ = await load_entries(list(keys), source, self._staleness, self._namespace, BypassingLoad())
        except Exception:
            self.load_errors += 1
            raise
        return {key: entries[key].value if key in entries else None for key in keys}

    async def _look_in_tiers(self, keys: Sequence[str], found: _Answers, source: Source) -> None:
        """Classify the entries of the lower tiers, and what other callers have loaded meanwhile."""
        read = await self._lookup.read(keys, source.tags, source.codec)
        for key in keys:
            entry = read.entries.get(key) or self._lookup.unverified(key, read)
            if entry is not None:
                self._classify(key, entry, found, source.options)
            if key not in found.values:
                since = not self._lower_tiers.ordering.is_current(found.began_at, key)
                if (value := self._l1.peek(key, since)) is not MISSING:
                    found.values[key] = value
                elif (entry := self._recent.get(key)) is not None:
                    self._classify(key, entry, found, source.options)
            if key not in found.values:
                found.seen[key] = read.seen(key)

    async def _present(self, keys: Sequence[str], source: Source) -> dict[str, Entry]:
        """Return the entries of keys, fresh or stale."""
        entries = {key: entry for key in keys if (entry := self._l1.entry(key)) is not None}
        missing = [key for key in keys if key not in entries]
        if missing:
            entries |= (await self._lookup.read(missing, source.tags, source.codec)).entries
        return entries

    def _look_in_this_process(self, keys: Sequence[str], found: _Answers, source: Source) -> list[str]:
        """Classify the entries that this process has, and return the keys to look for in the lower tiers."""
        predicted = {} if self.prefetch is None else self.prefetch.request_for(keys, source)
        unknown = []
        for key in keys:
            entry = predicted.get(key) or self._l1.held(key)
            flight = self.flights.get(key)
            if entry is None:
                entry = self._lower_tiers.queued(key) if flight is None else flight.stale.get(key)
            if entry is not None:
                self._classify(key, entry, found, source.options)
            elif flight is None:
                unknown.append(key)
        return unknown

    def _classify(self, key: str, entry: Entry, found: _Answers, options: EntryOptions) -> None:
        if not self._staleness.is_fresh(entry):
            if options.stale_ttl > 0 and self._staleness.seconds_until_removal(entry) > 0:
                found.stale[key] = entry
            return
        found.values[key] = entry.value
        if self._staleness.seconds_until_refresh(entry, options.refresh_ahead) <= 0:
            found.due_for_refresh[key] = entry

    def _join_or_start(
        self, keys: Sequence[str], found: _Answers, source: Source
    ) -> tuple[dict[Flight, list[str]], Flight | None]:
        """Find or start a load for every key that needs one.

        Return the loads to wait for, with their keys, and the one that was started.
        """
        missing = [key for key in keys if key not in found.values and not self._retries_later(key, found.stale)]
        refreshed = [
            key for key in found.due_for_refresh if self.flights.get(key) is None and key not in self._failures
        ]
        joined = {key: flight for key in missing if (flight := self.flights.get(key)) is not None}
        started = [key for key in missing if key not in joined] + refreshed
        own = self._start(started, found, source) if started else None
        if own is not None and refreshed:
            own.detached = True
            self.refreshes += len(refreshed)
        waits: dict[Flight, list[str]] = {}
        for key in missing:
            flight = joined.get(key, own)
            assert flight is not None
            if key in found.stale and source.options.soft_timeout == 0:
                flight.detached = True
                self.refreshes += flight is own
            else:
                waits.setdefault(flight, []).append(key)
                self.joined += flight is not own
        return waits, own

    def _retries_later(self, key: str, stale: Mapping[str, Entry]) -> bool:
        return key in stale and key in self._failures and self.flights.get(key) is None

    def _start(self, keys: Sequence[str], found: _Answers, source: Source) -> Flight:
        # Callers that join the load may get these entries, so leave out those that a write has superseded.
        candidates = {**found.due_for_refresh, **found.stale}
        servable = {
            key: entry
            for key in keys
            if (entry := candidates.get(key)) is not None
            and self._lower_tiers.ordering.is_current(found.began_at, key, entry.tags)
        }
        began_at = self._lower_tiers.ordering.latest
        source.replaced |= servable
        load = partial(self._run, keys, found.seen, source)
        return self.flights.start(keys, load, source.tags, servable, began_at, source.options.hard_timeout)

    async def _run(
        self, keys: Sequence[str], seen: Mapping[str, Seen], source: Source, flight: Flight
    ) -> Mapping[str, Any]:
        """Load keys that are not in flight.

        Keys whose entry came from this process, or that are due for refresh, are read from the tiers first, because
        another process may have loaded them. This also observes them: a value may be stored only if its key was
        observed before the load.
        """
        values: dict[str, Any] = {}
        seen = dict(seen)
        unread = [key for key in keys if key not in seen]
        if unread:
            entries, more = await self._read_again(unread, source)
            values = {key: self._store_in_l1(flight, key, entry, source.options) for key, entry in entries.items()}
            seen |= more
        missing = [key for key in keys if key not in values]
        # If L2 has not answered, it is not asked for a lock: the caller would wait for another deadline.
        if self._lock is not None and not source.reload and any(seen[key].l2 is not None for key in missing):
            return values | await self._load_locked(self._lock, flight, missing, source, seen)
        if missing:
            loaded, unkept = await self._call_loader(flight, missing, source)
            # Check all entries before the first one is stored: storing very many keys supersedes all reads in flight.
            current = {key for key, entry in loaded.items() if self._is_current(flight, key, entry)} - unkept
            for key, entry in loaded.items():
                values[key] = entry.value
                if key in current:
                    self._store(key, entry, source.options, seen[key])
        return values

    async def _load_locked(
        self, lock: ProcessLock, flight: Flight, keys: Sequence[str], source: Source, seen: dict[str, Seen]
    ) -> dict[str, Any]:
        """Load the keys that no other process is loading, and wait for what the others load.

        A tier that has not answered is not asked again, so that a caller waits for one deadline and not for several.
        """
        values: dict[str, Any] = {}
        waiting = list(keys)
        l3_answers = any(seen[key].l3 is not None for key in keys)
        give_up_at = asyncio.get_running_loop().time() + lock.ttl
        wait = WaitForProcesses(self._namespace, flight)
        while waiting:
            with wait, lock.waiting(waiting) as released:
                locks = await lock.acquire(waiting, give_up_at)
                unshared: set[str] = set()
                try:
                    # The previous holder of a lock may have stored a value since the last read.
                    answered = [key for key in waiting if key not in locks.unanswered]
                    entries, more = await self._read_again(answered, source, l3=l3_answers)
                    seen |= more
                    values |= {
                        key: self._store_in_l1(flight, key, entry, source.options) for key, entry in entries.items()
                    }
                    own = [key for key in locks.tokens if key not in entries]
                    if own:
                        wait.end()
                        loaded, stored = await self._load_own(lock, flight, own, source, seen, locks)
                        values |= loaded
                        unshared = {key for key in own if key not in stored}
                except BaseException as error:
                    await lock.release(locks, error=error)
                    raise
                await lock.release(locks, unshared)
                waiting = [key for key in waiting if key not in entries and key not in own]
                if waiting:
                    wait.begin(waiting)
                    if await released.wait(waiting, give_up_at):
                        # The other process has stored no value. It is faster then if each process loads for itself.
                        give_up_at = 0
        wait.end()
        return values

    async def _load_own(
        self,
        lock: ProcessLock,
        flight: Flight,
        keys: list[str],
        source: Source,
        seen: Mapping[str, Seen],
        locks: HeldLocks,
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Load keys, and return when the first tier has those whose locks this load holds.

        Returns:
            The values, and the keys whose value the tier has stored.
        """
        loaded, unkept = await self._call_loader(flight, keys, source)
        values: dict[str, Any] = {}
        if locks.expired:
            newer, _ = await self._read_again(list(loaded), source)
            values = {key: self._store_in_l1(flight, key, entry, source.options) for key, entry in newer.items()}
            loaded = {key: entry for key, entry in loaded.items() if key not in newer}
        for key in unkept & loaded.keys():
            values[key] = loaded.pop(key).value
        shared = {
            key: entry
            for key, entry in loaded.items()
            if self._is_current(flight, key, entry) and self._may_be_shared(entry)
        }
        values |= {
            key: self._store_in_l1(flight, key, entry, source.options, seen[key]) for key, entry in loaded.items()
        }
        # Wait before the locks are released. Otherwise the next holder would not find the entries.
        held = {key: entry for key, entry in shared.items() if locks.tokens[key] and lock.is_answering}
        for key, entry in shared.items():
            if key not in held:
                self._lower_tiers.put(key, entry, seen[key])
        stored = await self._lower_tiers.put_and_wait(held, seen) if held else frozenset[str]()
        return values, stored

    async def _read_again(
        self, keys: Sequence[str], source: Source, *, l3: bool = True
    ) -> tuple[dict[str, Entry], dict[str, Seen]]:
        """Return the entries in the tiers that are not due for refresh, and what the tiers have under the other keys.

        A value may be stored only if its key was observed before the load. With `l3` False, L3 is not asked.
        """
        entries: dict[str, Entry] = {}
        seen: dict[str, Seen] = {}
        due = []
        found = await self._lookup.read(keys, source.tags, source.codec, l3=l3)
        for key in keys:
            entry = found.entries.get(key)
            if entry is not None:
                source.replaced[key] = entry
            if entry is None or not self._staleness.is_fresh(entry):
                seen[key] = found.seen(key)
            elif self._staleness.seconds_until_refresh(entry, source.options.refresh_ahead) <= 0:
                due.append(key)
            else:
                entries[key] = entry
        if due:
            seen |= await self._lookup.observe(due, source.tags)
        return entries, seen

    def _call_loader(self, flight: Flight, keys: list[str], source: Source) -> Awaitable[LoadedEntries]:
        """See `load_entries`."""
        self.loads += 1
        flight.loader_keys.update(keys)
        return load_entries(keys, source, self._staleness, self._namespace, flight)

    def _store(self, key: str, entry: Entry, options: EntryOptions, seen: Seen) -> None:
        """Store a loaded entry in every tier."""
        if self._may_be_shared(entry):
            self._lower_tiers.put(key, entry, seen)
        self._put_in_l1(key, entry, options, seen)

    def _store_in_l1(
        self, flight: Flight, key: str, entry: Entry, options: EntryOptions, seen: Seen | None = None
    ) -> Any:
        """Store an entry in L1, unless a write has superseded the load. Return its value.

        Args:
            flight: the load.
            key: one of its keys.
            entry: what it has loaded or found.
            options: those of the call that started it.
            seen: what the tiers had before the load. If the load took longer than they remember writes, L1 does not
                keep the entry.
        """
        if self._is_current(flight, key, entry):
            self._put_in_l1(key, entry, options, seen)
        return entry.value

    def _put_in_l1(self, key: str, entry: Entry, options: EntryOptions, seen: Seen | None) -> None:
        self._failures.pop(key, None)
        if seen is None or time.monotonic() < seen.expires_at:
            self._recent.add(key, entry)
            self._l1.put(key, entry, options.refresh_ahead)

    def _is_current(self, flight: Flight, key: str, entry: Entry) -> bool:
        """Return whether no write has superseded the load. This includes a write in flight at its start."""
        return key in flight.keys and self._lower_tiers.ordering.is_current(flight.began_at, key, entry.tags)

    def _may_be_shared(self, entry: Entry) -> bool:
        # Clients choose the keys of negative entries: without a limit they could fill the lower tiers.
        return not entry.negative or self._l1.has_room_for_negatives

    async def _wait(self, waits: Mapping[Flight, Sequence[str]], found: _Answers, soft_timeout: float | None) -> None:
        """Wait until the loads end, at most for the soft timeout if every key has a stale value. Add their values."""
        limited = [flight for flight, keys in waits.items() if all(key in found.stale for key in keys)]
        unlimited = [flight for flight in waits if flight not in limited]
        until_done = [*unlimited, *limited] if soft_timeout is None else unlimited
        with self.flights.waiting(waits, until_done):
            # `asyncio.wait`, because its timeout and its cancellation do not cancel the load.
            if unlimited:
                await asyncio.wait([flight.done for flight in unlimited])
            if limited:
                await asyncio.wait([flight.done for flight in limited], timeout=soft_timeout)
            for flight in limited:
                if not flight.done.done():
                    flight.detached = True
                    self.refreshes += 1
            self._collect(waits, found)

    def _collect(self, waits: Mapping[Flight, Sequence[str]], found: _Answers) -> None:
        """Add the loaded values. Raise the error of a load, unless there is a stale value."""
        for flight, keys in waits.items():
            for key in keys:
                if key not in found.stale or (flight.done.done() and not flight.failed):
                    self.missed += key in flight.loader_keys
                    found.values[key] = flight.result(key)

    def _on_failure(self, flight: Flight, error: BaseException) -> None:
        self.load_errors += 1
        self.load_timeouts += isinstance(error, LoadTimeoutError)
        if self._staleness.retry_after > 0:
            for key in flight.keys & flight.stale.keys():
                self._failures.set(key, True, ttl=self._staleness.retry_after)
