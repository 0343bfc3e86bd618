"""Plain Python that works like the replaced modules, to compare with."""

import asyncio
import re
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

CONSTITUTIONAL_HASH = "cdd01ef066bc6cf2"
_HEXADECIMAL = re.compile(r"[0-9a-f]{16}")
_HOUR = 3600


class PlainValidator:
    """A memoized method over sets and a regular expression."""

    def __init__(self) -> None:
        self.good = {CONSTITUTIONAL_HASH}
        self.bad: set[str] = set()
        self.hits = self.misses = self.validations = 0
        self.seconds = 0.0

    @lru_cache(maxsize=10_000)  # noqa: B019 - like the replaced module
    def validate_hash(self, value: str) -> bool:
        started = time.perf_counter()
        self.validations += 1
        try:
            if value in self.good:
                self.hits += 1
                return True
            if value in self.bad:
                self.hits += 1
                return False
            self.misses += 1
            if _HEXADECIMAL.fullmatch(value) and value == CONSTITUTIONAL_HASH:
                self.good.add(value)
                return True
            self.bad.add(value)
            return False
        finally:
            self.seconds += time.perf_counter() - started


@dataclass
class PlainEntry:
    value: object
    created_at: float
    last_accessed: float
    ttl: float | None
    access_count: int = 0

    def is_expired(self) -> bool:
        return self.ttl is not None and time.time() - self.created_at > self.ttl

    def touch(self) -> None:
        self.last_accessed = time.time()
        self.access_count += 1


@dataclass
class PlainMetrics:
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    accesses: int = 0
    seconds: float = 0.0


@dataclass
class PlainCache:
    """An `OrderedDict` of entry objects under a lock, with wall-clock times."""

    maxsize: int = 100_000
    entries: OrderedDict[str, PlainEntry] = field(default_factory=OrderedDict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    metrics: PlainMetrics = field(default_factory=PlainMetrics)
    patterns: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def get(self, key: str) -> object:
        started = time.perf_counter()
        try:
            async with self.lock:
                value = self._look_up(key)
            if value is None:
                self.metrics.misses += 1
                return None
            self.metrics.hits += 1
            self._note_access(key)
            return value
        finally:
            self.metrics.seconds += time.perf_counter() - started
            self.metrics.accesses += 1

    async def set(self, key: str, value: object, ttl: float | None = _HOUR) -> None:
        async with self.lock:
            while len(self.entries) >= self.maxsize:
                self.entries.popitem(last=False)
                self.metrics.evictions += 1
            now = time.time()
            self.entries[key] = PlainEntry(value, now, now, ttl)

    def _look_up(self, key: str) -> object:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry.is_expired():
            del self.entries[key]
            return None
        entry.touch()
        self.entries.move_to_end(key)
        return entry.value

    def _note_access(self, key: str) -> None:
        times = self.patterns[key]
        times.append(time.time())
        if len(times) > 100:
            del times[:-100]


@dataclass
class PlainServiceMetrics:
    requests: int = 0
    successful: int = 0
    validations: int = 0
    hits: int = 0
    misses: int = 0
    total_s: float = 0.0
    min_s: float = float("inf")
    max_s: float = 0.0

    def add_request(self, seconds: float) -> None:
        self.requests += 1
        self.successful += 1
        self.total_s += seconds
        self.min_s = min(self.min_s, seconds)
        self.max_s = max(self.max_s, seconds)


class PlainService:
    """Validates, looks in the cache with a key made of the sorted items, and adds the response time."""

    def __init__(self) -> None:
        self.validator = PlainValidator()
        self.cache = PlainCache()
        self.metrics = PlainServiceMetrics()

    async def process_request(self, request: dict[str, object]) -> dict[str, object]:
        started = time.perf_counter()
        if not self.validator.validate_hash(CONSTITUTIONAL_HASH):
            raise ValueError("Constitutional compliance violation")
        self.metrics.validations += 1
        key = f"request:{hash(str(sorted(request.items())))}"
        response = await self.cache.get(key)
        cached = isinstance(response, dict)
        if isinstance(response, dict):
            self.metrics.hits += 1
        else:
            self.metrics.misses += 1
            response = {
                "processed": True,
                "timestamp": time.time(),
                "constitutional_hash": CONSTITUTIONAL_HASH,
                "request_id": request.get("id", "unknown"),
            }
            await self.cache.set(key, response, 300)
        seconds = time.perf_counter() - started
        self.metrics.add_request(seconds)
        return {
            **response,
            "performance": {
                "response_time_ms": seconds * 1000,
                "cached": cached,
                "constitutional_validated": True,
            },
        }
