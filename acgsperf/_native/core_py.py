"""The core in plain Python: the fallback where nothing compiles, the tests' oracle and the benchmarks' baseline.

Behaves as `_core` does, which documents the classes; the two change together.
"""

import math
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from operator import index
from types import GenericAlias, SimpleNamespace
from typing import Any, Final, NoReturn, Self, SupportsIndex

from acgsperf._native import hdr_codec
from acgsperf._native.arguments import (
    HEXADECIMAL,
    checked_callable,
    checked_hashes,
    checked_interval_ns,
    checked_maxsize,
    checked_percent,
    checked_ttl_ns,
)
from acgsperf._native.hdr_layout import Layout
from acgsperf._native.types import (
    CONSTITUTIONAL_HASH,
    CacheStats,
    EvictionReason,
    HistogramSnapshot,
    ValidatorStats,
    Verdict,
)

IMPLEMENTATION: Final = "python"

_MISSING: Final = object()


class _Final:
    """Refuses subclasses of its subclasses, and pickling, as the compiled types do."""

    __slots__ = ("__weakref__",)

    def __init_subclass__(cls) -> None:
        if _Final not in cls.__bases__:
            raise TypeError(f"type '{cls.__mro__[1].__name__}' is not an acceptable base type")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle '{type(self).__name__}' object")


class HashValidator(_Final):
    """Tells whether a value is one of the accepted constitutional hashes."""

    __slots__ = ("_accepted", "_expected", "_lock", "_malformed", "_mismatched", "_on_reject", "_valid")

    def __init__(
        self,
        expected: str | Iterable[str] = CONSTITUTIONAL_HASH,
        *,
        on_reject: Callable[[object], object] | None = None,
    ) -> None:
        self._expected = checked_hashes(expected)
        self._on_reject = checked_callable("on_reject", on_reject)
        self._accepted = frozenset(self._expected)
        self._lock = threading.Lock()
        self.reset_stats()

    @property
    def expected(self) -> tuple[str, ...]:
        """The accepted hashes."""
        return self._expected

    def _examine(self, value: object) -> Verdict:
        # A subclass of str may lie in __eq__ and __hash__; its characters do not.
        text = str.__str__(value) if isinstance(value, str) else ""
        with self._lock:
            if text in self._accepted:
                self._valid += 1
                return Verdict.VALID
            if HEXADECIMAL.fullmatch(text):
                self._mismatched += 1
                return Verdict.MISMATCH
            self._malformed += 1
            return Verdict.MALFORMED

    def _reject(self, value: object) -> None:
        if self._on_reject is not None:
            try:
                self._on_reject(value)
            except BaseException as error:
                _report_unraisable(error, self._on_reject)

    def classify(self, value: object, /) -> Verdict:
        """VALID, MISMATCH (a hash, but not an accepted one) or MALFORMED (not a hash at all)."""
        verdict = self._examine(value)
        if not verdict:
            self._reject(value)
        return verdict

    def validate(self, value: object, /) -> bool:
        """True for an accepted hash; False for anything else, of whatever type."""
        return self.classify(value) is Verdict.VALID

    def validate_many(self, values: Iterable[object], /) -> list[bool]:
        """`validate` for each item of an iterable."""
        if type(values) not in (list, tuple):
            return [self.validate(value) for value in values]
        items = tuple(values)
        verdicts = [self._examine(value) is Verdict.VALID for value in items]
        for value, valid in zip(items, verdicts, strict=True):
            if not valid:
                self._reject(value)
        return verdicts

    def stats(self) -> ValidatorStats:
        """The counters since creation or `reset_stats`."""
        with self._lock:
            return ValidatorStats(self._valid, self._mismatched, self._malformed)

    def reset_stats(self) -> None:
        """Set the counters to zero."""
        with self._lock:
            self._valid = self._mismatched = self._malformed = 0

    def __repr__(self) -> str:
        return f"<HashValidator expected={self.expected!r}>"


class _Entry:
    __slots__ = ("expires_ns", "hash", "key", "value")

    def __init__(self, key: Any, key_hash: int, value: Any, expires_ns: int | None) -> None:
        self.key = key
        self.hash = key_hash
        self.value = value
        self.expires_ns = expires_ns

    def is_expired(self, now_ns: int) -> bool:
        return self.expires_ns is not None and now_ns >= self.expires_ns


class LRUCache(_Final):
    """A mapping of bounded size that forgets what was not used longest, and what has outlived its time.

    Entries are found through their hash and ordered by their identity: only `_find` runs a key's own code.
    """

    __slots__ = (
        "_by_hash",
        "_clock",
        "_evictions",
        "_expirations",
        "_hits",
        "_insertions",
        "_lock",
        "_maxsize",
        "_misses",
        "_on_evict",
        "_order",
        "_ttl",
        "_ttl_ns",
        "_updates",
    )

    def __init__(
        self,
        maxsize: int,
        ttl: float | None = None,
        *,
        clock: Callable[[], float] | None = None,
        on_evict: Callable[[Any, Any, EvictionReason], object] | None = None,
    ) -> None:
        self._maxsize = checked_maxsize(maxsize)
        self._ttl_ns = checked_ttl_ns(ttl)
        self._ttl = None if ttl is None else math.inf if self._ttl_ns is None else float(ttl)
        self._clock = checked_callable("clock", clock)
        self.on_evict = on_evict
        self._by_hash: dict[int, tuple[_Entry, ...]] = {}
        self._order: OrderedDict[_Entry, None] = OrderedDict()
        # Reentrant, for the keys' own __eq__ runs inside and may use the cache.
        self._lock = threading.RLock()
        self.reset_stats()

    @property
    def maxsize(self) -> int:
        """Entries at most; `resize` changes it."""
        return self._maxsize

    @property
    def ttl(self) -> float | None:
        """Seconds until an entry expires unless `set` says otherwise; None for never."""
        return self._ttl

    @property
    def on_evict(self) -> Callable[[Any, Any, EvictionReason], object] | None:
        """Called with (key, value, reason) for every entry that size or expiry removed; may be replaced."""
        return self._on_evict

    @on_evict.setter
    def on_evict(self, callback: Callable[[Any, Any, EvictionReason], object] | None) -> None:
        self._on_evict = checked_callable("on_evict", callback)

    def _now_ns(self) -> int:
        if self._clock is None:
            return time.monotonic_ns()
        # Takes what C takes for a number, and no text.
        now = math.fsum((self._clock(),))
        if not -4e9 < now < 4e9:
            raise ValueError(f"clock must return seconds within 4e9 of zero, not {now!r}")
        return round(now * 1e9)

    def _find(self, key: Hashable, key_hash: int) -> _Entry | None:
        """The entry of a key. Starts again whenever a comparison changed the entries of that hash."""
        while True:
            candidates = self._by_hash.get(key_hash, ())
            found = next((entry for entry in candidates if entry.key is key or entry.key == key), None)
            if self._by_hash.get(key_hash, ()) is candidates:
                return found

    def _insert(self, entry: _Entry) -> None:
        self._by_hash[entry.hash] = (*self._by_hash.get(entry.hash, ()), entry)
        self._order[entry] = None

    def _detach(self, entry: _Entry) -> None:
        del self._order[entry]
        others = tuple(other for other in self._by_hash[entry.hash] if other is not entry)
        if others:
            self._by_hash[entry.hash] = others
        else:
            del self._by_hash[entry.hash]

    def _evict(self, entry: _Entry, now_ns: int) -> tuple[_Entry, EvictionReason]:
        """Take an entry out and count it; `_notify` comes after the lock."""
        self._detach(entry)
        if entry.is_expired(now_ns):
            self._expirations += 1
            return entry, EvictionReason.EXPIRED
        self._evictions += 1
        return entry, EvictionReason.SIZE

    def _notify(self, evicted: Iterable[tuple[_Entry, EvictionReason]]) -> None:
        for entry, reason in evicted:
            callback = self._on_evict
            if callback is None:
                continue
            try:
                callback(entry.key, entry.value, reason)
            except BaseException as error:
                _report_unraisable(error, callback)

    def _lookup(self, key: Hashable, key_hash: int, now_ns: int) -> Any:
        evicted: list[tuple[_Entry, EvictionReason]] = []
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is None:
                self._misses += 1
                return _MISSING
            if not entry.is_expired(now_ns):
                self._hits += 1
                self._order.move_to_end(entry)
                return entry.value
            self._misses += 1
            evicted.append(self._evict(entry, now_ns))
        self._notify(evicted)
        return _MISSING

    def _store(self, key: Hashable, key_hash: int, value: Any, ttl_ns: int | None, now_ns: int) -> None:
        expires_ns = None if ttl_ns is None else now_ns + ttl_ns
        evicted: list[tuple[_Entry, EvictionReason]] = []
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is not None and not entry.is_expired(now_ns):
                # Kept until the lock is free: dropping it may run code.
                old = entry.value
                entry.value, entry.expires_ns = value, expires_ns
                self._order.move_to_end(entry)
                self._updates += 1
            else:
                old = None
                evicted = self._place(entry, _Entry(key, key_hash, value, expires_ns), now_ns)
        del old
        self._notify(evicted)

    def _place(self, expired: _Entry | None, entry: _Entry, now_ns: int) -> list[tuple[_Entry, EvictionReason]]:
        """Insert an entry, in the place of an expired one or perhaps of the oldest; what was evicted."""
        evicted = []
        if expired is not None:
            evicted.append(self._evict(expired, now_ns))
        elif len(self._order) >= self._maxsize:
            evicted.append(self._evict(next(iter(self._order)), now_ns))
        self._insert(entry)
        self._insertions += 1
        return evicted

    def get(self, key: Hashable, default: Any = None, /) -> Any:
        """The value of a key, which becomes the most recently used; `default` when missing or expired."""
        key_hash = hash(key)
        value = self._lookup(key, key_hash, self._now_ns())
        return default if value is _MISSING else value

    def peek(self, key: Hashable, default: Any = None, /) -> Any:
        """The value of a fresh entry, or `default`; neither the order nor the counters change."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        with self._lock:
            entry = self._find(key, key_hash)
            return default if entry is None or entry.is_expired(now_ns) else entry.value

    def set(self, key: Hashable, value: Any, ttl: Any = ...) -> None:
        """Store a value as the most recently used; when full, the least recently used entry is evicted."""
        ttl_ns = self._ttl_ns if ttl is ... else checked_ttl_ns(ttl)
        key_hash = hash(key)
        self._store(key, key_hash, value, ttl_ns, self._now_ns())

    def setdefault(self, key: Hashable, default: Any = None, /) -> Any:
        """The value of a key, which is set to `default` when it is missing or expired."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        expires_ns = None if self._ttl_ns is None else now_ns + self._ttl_ns
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is not None and not entry.is_expired(now_ns):
                self._hits += 1
                self._order.move_to_end(entry)
                return entry.value
            self._misses += 1
            evicted = self._place(entry, _Entry(key, key_hash, default, expires_ns), now_ns)
        self._notify(evicted)
        return default

    def pop(self, key: Hashable, default: Any = ..., /) -> Any:
        """Remove a key and return its value."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        evicted: list[tuple[_Entry, EvictionReason]] = []
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is not None:
                if not entry.is_expired(now_ns):
                    self._detach(entry)
                    return entry.value
                evicted.append(self._evict(entry, now_ns))
        self._notify(evicted)
        if default is ...:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return the least recently used fresh (key, value)."""
        now_ns = self._now_ns()
        while True:
            with self._lock:
                entry = next(iter(self._order), None)
                if entry is None:
                    raise KeyError("popitem(): cache is empty")
                if not entry.is_expired(now_ns):
                    self._detach(entry)
                    return entry.key, entry.value
                evicted = self._evict(entry, now_ns)
            self._notify([evicted])

    def update(self, other: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /) -> None:
        """`set` every item of a mapping, or of an iterable of (key, value)."""
        for key, value in other.items() if isinstance(other, Mapping) else other:
            self.set(key, value)

    def clear(self) -> None:
        """Remove every entry; counters stay, `on_evict` is not called."""
        with self._lock:
            old = self._order, self._by_hash
            self._order, self._by_hash = OrderedDict(), {}
        del old

    def expire(self) -> int:
        """Remove every expired entry, least recently used first, and return how many there were."""
        now_ns = self._now_ns()
        with self._lock:
            expired = [entry for entry in list(self._order) if entry.is_expired(now_ns)]
            # What ran meanwhile may have removed some of them.
            evicted = [self._evict(entry, now_ns) for entry in expired if entry in self._order]
        self._notify(evicted)
        return len(evicted)

    def expires_in(self, key: Hashable, /) -> float | None:
        """Seconds until a key expires, None for never; KeyError when it is missing or has expired."""
        key_hash = hash(key)
        now_ns = self._now_ns()
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is None or entry.is_expired(now_ns):
                raise KeyError(key)
            return None if entry.expires_ns is None else (entry.expires_ns - now_ns) / 1e9

    def resize(self, maxsize: int) -> None:
        """Change how many entries the cache holds; the least recently used ones over that are evicted."""
        limit = checked_maxsize(maxsize)
        now_ns = self._now_ns()
        evicted = []
        with self._lock:
            self._maxsize = limit
            while len(self._order) > limit:
                evicted.append(self._evict(next(iter(self._order)), now_ns))
        self._notify(evicted)

    def _fresh(self) -> list[_Entry]:
        now_ns = self._now_ns()
        with self._lock:
            # A copy, for from 3.12 on a garbage collection, and with it any code, may run between two bytecodes.
            return [entry for entry in list(self._order) if not entry.is_expired(now_ns)]

    def keys(self) -> list[Any]:
        """A list of the fresh keys, least recently used first."""
        return [entry.key for entry in self._fresh()]

    def values(self) -> list[Any]:
        """A list of the fresh values, least recently used first."""
        return [entry.value for entry in self._fresh()]

    def items(self) -> list[tuple[Any, Any]]:
        """A list of the fresh (key, value) pairs, least recently used first."""
        return [(entry.key, entry.value) for entry in self._fresh()]

    def stats(self) -> CacheStats:
        """The counters since creation or `reset_stats`, and the size now."""
        with self._lock:
            return CacheStats(
                self._hits,
                self._misses,
                self._insertions,
                self._updates,
                self._evictions,
                self._expirations,
                len(self._order),
                self._maxsize,
            )

    def reset_stats(self) -> None:
        """Set the counters to zero."""
        with self._lock:
            self._hits = self._misses = self._insertions = 0
            self._updates = self._evictions = self._expirations = 0

    def __getitem__(self, key: Hashable, /) -> Any:
        key_hash = hash(key)
        value = self._lookup(key, key_hash, self._now_ns())
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Hashable, value: Any, /) -> None:
        self.set(key, value)

    def __delitem__(self, key: Hashable, /) -> None:
        key_hash = hash(key)
        with self._lock:
            entry = self._find(key, key_hash)
            if entry is None:
                raise KeyError(key)
            self._detach(entry)

    def __contains__(self, key: Hashable, /) -> bool:
        return self.peek(key, _MISSING) is not _MISSING

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __reversed__(self) -> Iterator[Any]:
        return iter(self.keys()[::-1])

    def __len__(self) -> int:
        return len(self._order)

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sys.getsizeof(self._order) + sys.getsizeof(self._by_hash)

    def __repr__(self) -> str:
        return f"<LRUCache size={len(self)} maxsize={self.maxsize} ttl={self.ttl}>"

    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias:
        return GenericAlias(cls, item)


MutableMapping.register(LRUCache)


def _report_unraisable(error: BaseException, origin: object) -> None:
    """Hand an exception to sys.unraisablehook, as the interpreter does for __del__."""
    args = SimpleNamespace(
        exc_type=type(error),
        exc_value=error,
        exc_traceback=error.__traceback__,
        err_msg=None,
        object=origin,
    )
    if sys.unraisablehook is sys.__unraisablehook__:
        # The interpreter's own hook takes only its own argument type, which Python code cannot make.
        print(f"Exception ignored in: {origin!r}", file=sys.stderr)
        sys.excepthook(args.exc_type, args.exc_value, args.exc_traceback)
    else:
        with suppress(BaseException):
            sys.unraisablehook(args)


class LatencyHistogram(_Final):
    """Counts latencies in buckets whose width grows with the value (HdrHistogram, by Gil Tene)."""

    __slots__ = ("_counts", "_largest", "_layout", "_lock", "_smallest", "_total")

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        lowest_ns: int = 1,
        highest_ns: int = 3_600_000_000_000,
        significant_figures: int = 3,
    ) -> None:
        self._layout = Layout(lowest_ns, highest_ns, significant_figures)
        self._lock = threading.RLock()
        self._counts: list[int]
        self._total: int
        self._smallest: int
        self._largest: int
        self.reset()

    @property
    def lowest_ns(self) -> int:
        """The smallest difference told apart."""
        return self._layout.lowest_ns

    @property
    def highest_ns(self) -> int:
        """The largest latency that can be recorded."""
        return self._layout.highest_ns

    @property
    def significant_figures(self) -> int:
        """The decimal figures to which every figure is right."""
        return self._layout.significant_figures

    def _used(self) -> range:
        return (
            range(self._layout.index_of(self._smallest), self._layout.index_of(self._largest) + 1)
            if self._total
            else range(0)
        )

    def _add(self, value: int, count: int) -> None:
        self._counts[self._layout.index_of(value)] += count
        self._total += count
        self._smallest = min(self._smallest, value)
        self._largest = max(self._largest, value)

    def _checked(self, ns: SupportsIndex) -> int:
        try:
            value = index(ns)
        except TypeError:
            raise TypeError(f"latency must be an integer number of nanoseconds, not {ns!r}") from None
        if not 0 <= value <= self.highest_ns:
            raise ValueError(f"latency must be between 0 and {self.highest_ns} ns, not {value!r}")
        return value

    def record(self, ns: int, /) -> None:
        """Count one latency in nanoseconds."""
        value = self._checked(ns)
        with self._lock:
            self._add(value, 1)

    def record_many(self, values_ns: Iterable[int], /) -> None:
        """Count every latency of an iterable, or none of them when one is bad."""
        values = [self._checked(ns) for ns in values_ns]
        with self._lock:
            for value in values:
                self._add(value, 1)

    def record_corrected(self, ns: int, expected_interval_ns: int) -> None:
        """Count a latency, and those that a caller who waits for answers could not measure meanwhile."""
        value = self._checked(ns)
        interval = checked_interval_ns(value, expected_interval_ns)
        with self._lock:
            self._add(value, 1)
            for omitted in range(value - interval, interval - 1, -interval):
                self._add(omitted, 1)

    @property
    def count(self) -> int:
        """Latencies recorded."""
        return self._total

    @property
    def min(self) -> int:
        """The smallest latency recorded, in ns; 0 when there is none."""
        with self._lock:
            return self._smallest if self._total else 0

    @property
    def max(self) -> int:
        """The largest latency recorded, in ns; 0 when there is none."""
        return self._largest

    @property
    def mean(self) -> float:
        """The arithmetic mean in ns, from the middle of each bucket; 0.0 when empty."""
        total = 0.0
        with self._lock:
            for i in self._used():
                if self._counts[i]:
                    total += float(self._counts[i]) * float(self._layout.median_of(i))
            return total / self._total if self._total else 0.0

    @property
    def stddev(self) -> float:
        """The standard deviation in ns of the whole population; 0.0 when empty."""
        with self._lock:
            mean, total = self.mean, 0.0
            for i in self._used():
                if self._counts[i]:
                    deviation = self._layout.median_of(i) - mean
                    total += deviation * deviation * self._counts[i]
            return math.sqrt(total / self._total) if self._total else 0.0

    def percentile(self, q: float, /) -> int:
        """The latency in ns of the nearest rank to `q` percent of the recorded ones; 0 when empty."""
        percent = checked_percent(q)
        with self._lock:
            return self._percentile(percent)

    def _percentile(self, percent: float) -> int:
        if self._total == 0:
            return 0
        if percent == 0:
            return self._smallest
        wanted = max(1, int(percent / 100 * float(self._total) + 0.5))
        seen = 0
        for i in self._used():
            seen += self._counts[i]
            if seen >= wanted:
                return min(max(self._layout.highest_of(i), self._smallest), self._largest)
        return self._largest

    def merge(self, other: "LatencyHistogram", /) -> None:
        """Add the counts of another histogram; where its layout differs, by the middle of each of its buckets."""
        if not isinstance(other, LatencyHistogram):
            raise TypeError(f"Argument 'other' must be a LatencyHistogram, not {type(other).__name__}")
        with other._lock:
            counts = [(other._layout.median_of(i), other._counts[i]) for i in other._used() if other._counts[i]]
            total, smallest, largest = other._total, other._smallest, other._largest
        if largest > self.highest_ns:
            raise ValueError(f"merged latencies must be at most {self.highest_ns} ns, not {largest}")
        with self._lock:
            if self._total + total >= 2**63:
                raise ValueError(f"merged latencies must be fewer than 2**63, not {self._total + total}")
            for value, count in counts:
                # The clamp keeps what is added within what was recorded.
                self._counts[self._layout.index_of(min(max(value, smallest), largest))] += count
            self._total += total
            self._smallest = min(self._smallest, smallest)
            self._largest = max(self._largest, largest)

    def snapshot(self) -> HistogramSnapshot:
        """The usual figures, all of one moment."""
        with self._lock:
            percentiles = (self._percentile(q) for q in (50, 90, 95, 99, 99.9))
            return HistogramSnapshot(self._total, self.min, self._largest, self.mean, self.stddev, *percentiles)

    def reset(self) -> None:
        """Forget every latency."""
        with self._lock:
            self._counts = [0] * self._layout.length
            self._total = 0
            self._smallest = 2**63 - 1
            self._largest = 0

    def time(self) -> "Timer":
        """A context manager that records how long its block took, whether it raised or not."""
        return Timer(self)

    def _used_counts(self) -> list[int]:
        return self._counts[: self._layout.index_of(self._largest) + 1] if self._total else []

    def encode(self) -> bytes:
        """The HdrHistogram V2 compressed format, as bytes (other tools expect it in base64)."""
        with self._lock:
            counts = self._used_counts()
        return hdr_codec.encode(self.lowest_ns, self.highest_ns, self.significant_figures, counts)

    @classmethod
    def decode(cls, blob: bytes, /) -> Self:
        """A histogram from the HdrHistogram V2 compressed format."""
        lowest, highest, figures, counts = hdr_codec.decode(blob)
        histogram = cls(lowest, highest, figures)
        for i, count in counts:
            histogram._counts[i] = count
            histogram._total += count
            histogram._smallest = min(histogram._smallest, histogram._layout.lowest_of(i))
            histogram._largest = min(histogram._layout.highest_of(i), highest)
        return histogram

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, LatencyHistogram):
            return NotImplemented
        if (self.lowest_ns, self.highest_ns, self.significant_figures) != (
            other.lowest_ns,
            other.highest_ns,
            other.significant_figures,
        ):
            return False
        # One order for every thread, lest two that compare the same pair wait for each other.
        first, second = sorted((self, other), key=id)
        with first._lock, second._lock:
            return self._used_counts() == other._used_counts()

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sys.getsizeof(self._counts)

    def __repr__(self) -> str:
        return f"<LatencyHistogram count={self.count} min={self.min} max={self.max}>"


class Timer(_Final):
    """Records the time between entering and leaving; made by `LatencyHistogram.time`."""

    __slots__ = ("_histogram", "_started_ns")

    def __init__(self, histogram: LatencyHistogram) -> None:
        if not isinstance(histogram, LatencyHistogram):
            raise TypeError(f"Argument 'histogram' must be a LatencyHistogram, not {type(histogram).__name__}")
        self._histogram = histogram
        self._started_ns = -1

    def __enter__(self) -> Self:
        self._started_ns = time.monotonic_ns()
        return self

    def __exit__(self, *exc_info: object) -> None:
        elapsed = time.monotonic_ns() - self._started_ns
        if self._started_ns < 0:
            raise RuntimeError("the timer was not entered")
        self._started_ns = -1
        self._histogram.record(min(max(elapsed, 0), self._histogram.highest_ns))
