"""Fetches the keys that are likely to be requested next, and holds their entries until they are."""

import asyncio
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import msgpack

from acgsperf._native.arguments import checked_bool
from acgsperf._native.entry import Codec, Packed
from acgsperf._native.predicting import SHARE, checked_depth, checked_share, checked_table_size
from acgsperf._native.prediction_stats import PredictionStats
from acgsperf._native.relearning import Learned, learned, relearn
from acgsperf.cache.l1 import L1, most_entries
from acgsperf.cache.lookup import Lookup
from acgsperf.cache.lower_tiers import LowerTiers
from acgsperf.cache.source import Source
from acgsperf.cache.staleness import Staleness
from acgsperf.cache.values import opened
from acgsperf.dispatch import BoundedCache, LRUCache, Predictor, weigh_bytes
from acgsperf.tiers.base import Entry

if TYPE_CHECKING:
    from acgsperf.cache.predicted_loads import PredictedLoads

__all__ = ["Prediction", "Prefetch", "checked_prediction"]

# The bytes that the predicted values of one request should have together, and that a single one may have.
_BUDGET_BYTES: Final = 64 * 1024
# How many keys with larger values are remembered.
_LARGE_KEYS: Final = 4_096
# Of a new size or of a request without room for one value, so much enters the typical size.
_WEIGHT: Final = 1 / 8
# With a limit of weight, so many values are held at most, and none may be heavier than its share.
_MOST_WEIGHTED: Final = 100


@dataclass(frozen=True, slots=True)
class Prediction:
    """How a `TieredCache` fetches keys ahead of their requests.

    Attributes:
        depth: how many requests ahead, 1 to 8. If most values arrive late that the first use of a predicted value
            fetches, a miss fetches twice as many instead, at most 8.
        table_size: how many keys, and pairs of keys, to remember with what followed them. Each takes 16 bytes, and the
            key that followed.
        share: the share of L1 that the values take at most until they are requested, more than 0 and at most 0.5.
        loads: whether to load predicted keys that no tier has, with the loader of the `get_or_load_many` that requested
            them last. At most as many keys are loaded as such calls have requested. No by default.

    Raises:
        TypeError, ValueError: if a value is not valid.
    """

    depth: int = 2
    table_size: int = 65_536
    share: float = SHARE
    loads: bool = False

    def __post_init__(self) -> None:
        checked_depth(self.depth)
        checked_table_size(self.table_size)
        checked_share(self.share)
        checked_bool("loads", self.loads)


def checked_prediction(prediction: bool | Prediction) -> Prediction | None:
    """Return the options of prediction, None for no prediction."""
    if prediction is True:
        return Prediction()
    if prediction is not False and not isinstance(prediction, Prediction):
        raise TypeError(f"prediction must be a bool or a Prediction, got {type(prediction).__name__}")
    return prediction or None


def _room(options: Prediction, cache: BoundedCache[str, Any]) -> int:
    """Return how many values may be held."""
    size = int(options.share * most_entries(cache))
    return size if cache.maxweight is None else min(size, _MOST_WEIGHTED)


class _Everything(Container[str]):
    """Contains every key, so that none is fetched."""

    def __contains__(self, key: object) -> bool:
        return True


class _Held:
    """An entry that waits for its first request.

    It is a read that has not ended yet: it may be used only if no write has superseded it since it began.
    """

    __slots__ = ("began_at", "entry", "put_at")

    def __init__(self, entry: Entry, began_at: int, put_at: float) -> None:
        self.entry = entry
        self.began_at = began_at
        self.put_at = put_at


class Prefetch:
    """Asks the lower tiers for predicted keys, and answers the first request for each.

    The predicted keys of a request travel with the read of that request, if there is one: in the same `MGET`, or the
    same `SELECT`. The read waits for their values, too, so their number depends on the size of the latest ones.

    The codec and the options of the caller are known when a key is requested. Until then its entry is held as the tier
    has returned it. If it does not fit the caller, the tiers are asked, as if the key had not been predicted.

    Args:
        options: the options.
        codec: opens the values of the cache; None if they have no declared type.
        l1: gets the entries that were requested. It becomes smaller by the number of entries that are held.
        lower_tiers: have the entries.
        lookup: reads the tiers after the first one.
        staleness: decides whether an entry is fresh.

    Attributes:
        enabled: whether to predict. May be changed at any time.
        loads: loads keys that no tier has; None to load none.
    """

    def __init__(
        self,
        options: Prediction,
        codec: Codec | None,
        l1: L1[Any],
        lower_tiers: LowerTiers,
        lookup: Lookup,
        staleness: Staleness,
    ) -> None:
        self._codec = codec
        self._l1, self._lru = l1, l1.lru
        size = _room(options, self._lru)
        self._weighted = self._lru.maxweight is not None
        self._share = options.share
        self._predictor: Final = Predictor(size, depth=options.depth, table_size=options.table_size)
        self._reserved = 0
        # By how many entries L1 is smaller: it keeps one at least.
        self._withheld = 0
        self._lookup = lookup
        self._staleness = staleness
        self._ordering = lower_tiers.ordering
        self._first_tier = lower_tiers.tiers[0]
        self._has_second_tier = len(lower_tiers.tiers) > 1
        self._typical_bytes = 0.0
        self._large: LRUCache[str, bool] = LRUCache(_LARGE_KEYS)
        # Keys that are read by a task, with the number of the latest write when their read began.
        self._waiting: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._open = False
        self.enabled = True
        self.loads: PredictedLoads | None = None

    @classmethod
    def create(
        cls,
        options: Prediction | None,
        codec: Codec | None,
        l1: L1[Any],
        lower_tiers: LowerTiers,
        lookup: Lookup,
        staleness: Staleness,
    ) -> "Prefetch | None":
        """Return None if there are no options, no tiers to ask, or no room for a value."""
        if options is None or not lower_tiers.tiers or not _room(options, l1.lru):
            return None
        return cls(options, codec, l1, lower_tiers, lookup, staleness)

    @property
    def depth(self) -> int:
        """How many requests ahead keys are predicted. May be changed at any time."""
        return self._predictor.depth

    @depth.setter
    def depth(self, depth: int) -> None:
        self._predictor.depth = depth

    def open(self) -> None:
        """Answer requests from now on."""
        self._open = True

    async def close(self) -> None:
        """Stop fetching, and drop what is held. What was learned stays."""
        self._open = False
        self._waiting.clear()
        if self.loads is not None:
            await self.loads.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._predictor.clear()
        self._reserve(0)

    @property
    def reserved(self) -> int:
        """By how many entries L1 is smaller now."""
        return self._withheld

    def remaining(self, maxsize: int) -> int:
        """Return how many entries L1 keeps, if it and what is held may have so many together."""
        self._withheld = 0 if self._weighted else min(self._reserved, maxsize - 1)
        return maxsize - self._withheld

    def learned(self) -> bytes:
        """Return what was learned, for `relearn` in another process. It may run in a thread."""
        return msgpack.encode(learned(self._predictor))

    def relearn(self, saved: bytes) -> None:
        """Continue with what was learned in another process. It may run in a thread."""
        relearn(self._predictor, msgpack.decode(saved, type=Learned))

    def stats(self) -> PredictionStats:
        """Return the counts so far."""
        stats = self._predictor.stats()
        return stats if self.loads is None else replace(stats, loaded=self.loads.loaded)

    def request(self, key: str, codec: Codec | None) -> Entry | None:
        """Learn that the `LRUCache` has missed a key. Return the fresh entry that is held for it, else None.

        Call it before the key is read from the tiers, in the same turn of the event loop: so the keys that are
        predicted now join that read.

        Args:
            key: the key.
            codec: opens the value for the caller.
        """
        return self._request(key, self._lru, codec, self._staleness.options.refresh_ahead)

    def request_many(self, keys: Sequence[str], codec: Codec | None, refresh_ahead: float | None) -> dict[str, Entry]:
        """Do as `request` does for each key. Only the last one predicts others: the caller has the rest already.

        Args:
            keys: distinct keys.
            codec: opens the values for the caller.
            refresh_ahead: the share of its ttl after which an entry is due for refresh, and not returned.
        """
        entries = {}
        for key in keys:
            entry = self._request(key, self._lru if key is keys[-1] else _EVERYTHING, codec, refresh_ahead)
            if entry is not None:
                entries[key] = entry
        return entries

    def request_for(self, keys: Sequence[str], source: Source) -> dict[str, Entry]:
        """Do as `request_many` does for a call that loads what is missing."""
        if source.local or source.predicted:
            return {}
        if self.loads is not None:
            self.loads.note(keys, source)
        return self.request_many(keys, source.codec, source.options.refresh_ahead)

    def answer(self, keys: Sequence[str], values: dict[str, Any], codec: Codec | None) -> list[str]:
        """Do as `request_many` does, add the values to `values`, and return the other keys."""
        entries = self.request_many(keys, codec, self._staleness.options.refresh_ahead)
        values.update((key, entry.value) for key, entry in entries.items())
        return [key for key in keys if key not in entries]

    def _request(
        self, key: str, held: Container[str], codec: Codec | None, refresh_ahead: float | None
    ) -> Entry | None:
        if not (self.enabled and self._open) or type(key) is not str:
            return None
        predictor = self._predictor
        found = predictor.peek(key)
        entry = None if found is None else self._usable(key, found, codec, refresh_ahead)
        if found is not None and entry is None:
            predictor.refuse(key)
        # Also if there is no value: then it is late.
        predictor.take(key)
        if found is not None and entry is not None:
            verified_for = self._l1.verified_for(found.put_at)
            self._l1.put(key, entry, refresh_ahead, verified_for=verified_for)
        wanted = predictor.next(key, held, self._lru.requests, entry is not None)
        if wanted:
            self._fetch(wanted)
        if self._predictor.reserved != self._reserved:
            self._reserve(self._predictor.reserved)
        return entry

    def _usable(self, key: str, found: _Held, codec: Codec | None, refresh_ahead: float | None) -> Entry | None:
        verified_for = self._l1.verified_for(found.put_at)
        if verified_for <= 0 or not self._may_be_used(key, found.entry, found.began_at, refresh_ahead):
            return None
        # The read that follows counts a value that cannot be opened.
        return opened(found.entry, codec, None)

    def _may_be_used(self, key: str, entry: Entry, began_at: int, refresh_ahead: float | None) -> bool:
        return (
            not entry.negative
            and self._staleness.seconds_until_refresh(entry, refresh_ahead) > 0
            and self._ordering.is_current(began_at, key, entry.tags)
        )

    def _fetch(self, keys: Iterable[str]) -> None:
        began_at = self._ordering.latest
        begin = self._lookup.begin_get
        room = int(_BUDGET_BYTES / self._typical_bytes) if self._typical_bytes else 1
        if room == 0:
            # Otherwise it would not be measured again.
            self._typical_bytes *= 1 - _WEIGHT
        for key in keys:
            if room <= 0 or key in self._large:
                self._predictor.discard(key)
                continue
            room -= 1
            if begin is None:
                self._read_in_task(key, began_at)
                continue
            future = begin(key)
            if future is None:
                self._predictor.discard(key)
            else:
                future.add_done_callback(partial(self._arrived, key, began_at))

    def _arrived(self, key: str, began_at: int, future: "asyncio.Future[Entry | None]") -> None:
        if future.cancelled() or not self._open:
            return
        entry = future.result()
        if entry is not None:
            self._hold(key, entry, began_at)
        elif not self._first_tier.is_answering:
            self._predictor.discard(key)
        elif self._has_second_tier:
            self._read_in_task(key, began_at)
        else:
            self._not_found(key)

    def _not_found(self, key: str) -> None:
        if self.loads is None or not self._first_tier.is_answering or not self.loads.begin(key):
            self._predictor.fail(key)

    def load_ended(self, key: str, loaded: bool) -> None:
        """Move the value of a predicted key, loaded into L1, to what is held, unless it was requested meanwhile."""
        entry = self._l1.answered_with(key) if loaded else None
        if entry is None:
            self._predictor.fail(key)
        else:
            self._hold(key, entry, self._ordering.latest)
            if key in self._predictor:
                self._l1.remove(key)

    def _hold(self, key: str, entry: Entry, began_at: int) -> None:
        size = _bytes_of(key, entry)
        self._typical_bytes += (size - self._typical_bytes) * _WEIGHT
        if size > _BUDGET_BYTES:
            self._large.set(key, True)
            self._predictor.fail(key)
        elif self._is_too_heavy(key, entry) or not self._may_be_used(
            key, entry, began_at, self._staleness.options.refresh_ahead
        ):
            self._predictor.fail(key)
        else:
            self._predictor.store(key, _Held(entry, began_at, self._staleness.clock()))

    def _is_too_heavy(self, key: str, entry: Entry) -> bool:
        if not self._weighted or self._lru.weigher is None:
            return False
        limit = self._share * (self._lru.maxweight or 0) / self._predictor.size
        if self._lru.weigher is weigh_bytes:
            return _bytes_of(key, entry) > limit
        # Another weigher may expect values of the declared type.
        found = opened(entry, self._codec, None)
        return found is None or self._lru.weigher(key, found.value) > limit

    def _read_in_task(self, key: str, began_at: int) -> None:
        self._waiting[key] = began_at
        if self._task is None:
            self._task = asyncio.Task(self._read())

    async def _read(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, {}
                began_at = min(waiting.values())
                after_first = self._lookup.begin_get is not None
                entries = await self._lookup.read_predicted(list(waiting), began_at, after_first_tier=after_first)
                for key in waiting:
                    if key in entries:
                        self._hold(key, entries[key], began_at)
                    else:
                        self._not_found(key)
        finally:
            self._task = None

    def _reserve(self, reserved: int) -> None:
        """Leave so many entries of L1 to what is held."""
        maxsize = self._lru.maxsize + self._withheld
        self._reserved = reserved
        if not self._weighted:
            self._lru.resize(self.remaining(maxsize))


def _bytes_of(key: str, entry: Entry) -> int:
    return weigh_bytes(key, entry.value.data if type(entry.value) is Packed else entry.value)


_EVERYTHING: Final = _Everything()
