"""What a type checker sees of the public names: `make types` reads this file, nothing runs it."""

from collections.abc import Callable
from typing import assert_type

from acgsperf import (
    AdaptiveCache,
    Alert,
    BoundedCache,
    CacheStats,
    ComplianceValidator,
    EvictionReason,
    HashValidator,
    HistogramSnapshot,
    LatencyHistogram,
    LRUCache,
    Monitor,
    PolicyStats,
    Reading,
    Settings,
    Targets,
    Timer,
    ValidatorStats,
    Verdict,
)
from acgsperf.asgi import PerformanceMiddleware
from acgsperf.metrics import HttpCounts, HttpSource


def heard(key: str, value: int, reason: EvictionReason) -> None:
    raise NotImplementedError


def seconds() -> float:
    raise NotImplementedError


cache: LRUCache[str, int] = LRUCache(10, 60, clock=seconds, on_evict=heard)
bounded: BoundedCache[str, int] = cache
adaptive: AdaptiveCache[str, int] = AdaptiveCache(maxweight=10, weigher=lambda key, value: value, policy="adaptive")
bounded = adaptive
assert_type(adaptive.get("a", 7), int)
assert_type(adaptive.maxweight, int | None)
assert_type(cache.get("a"), int | None)
assert_type(cache.get("a", None), int | None)
assert_type(cache.get("a", 7), int)
assert_type(cache.get("a", b"none"), int | bytes)
assert_type(cache.peek("a"), int | None)
assert_type(cache.peek("a", 7), int)
assert_type(cache.peek("a", b"none"), int | bytes)
assert_type(cache.setdefault("a"), int | None)
assert_type(cache.setdefault("a", 7), int)
assert_type(cache.pop("a"), int)
assert_type(cache.pop("a", 7), int)
assert_type(cache.pop("a", None), int | None)
assert_type(cache.popitem(), tuple[str, int])
assert_type(cache["a"], int)
assert_type(cache.keys(), list[str])
assert_type(cache.values(), list[int])
assert_type(cache.items(), list[tuple[str, int]])
assert_type(list(cache), list[str])
assert_type(cache.expire(), int)
assert_type(cache.expires_in("a"), float | None)
assert_type(cache.ttl, float | None)
assert_type(cache.stats(), CacheStats)
assert_type(cache.stats().hit_rate, float)
assert_type(adaptive.stats().policy, PolicyStats | None)
cache["a"] = 1
cache.set("a", 1, ttl=None)
cache.update({"a": 1})
cache.update([("a", 1)])
cache.on_evict = None
assert_type(LRUCache[bytes, str](10), LRUCache[bytes, str])

# Each of these must be an error, or the comment itself is one.
cache.get(1)  # type: ignore[call-overload]
cache.set("a", "text")  # type: ignore[arg-type]
cache.set("a", 1, ttl="60")  # type: ignore[arg-type]
cache.maxsize = 20  # type: ignore[misc]
LRUCache("10")  # type: ignore[arg-type]

validator = HashValidator(["cdd01ef066bc6cf2", "0123456789abcdef"])
assert_type(validator.expected, tuple[str, ...])
assert_type(validator.validate(object()), bool)
assert_type(validator.validate_many([None, "a", 1]), list[bool])
assert_type(validator.classify(None), Verdict)
assert_type(validator.stats(), ValidatorStats)
HashValidator(b"cdd01ef066bc6cf2")  # type: ignore[arg-type]

histogram = LatencyHistogram(1, 1_000_000, significant_figures=2)
assert_type(histogram.percentile(99.9), int)
assert_type(histogram.mean, float)
assert_type(histogram.count, int)
assert_type(histogram.snapshot(), HistogramSnapshot)
assert_type(histogram.encode(), bytes)
assert_type(LatencyHistogram.decode(b""), LatencyHistogram)
with histogram.time() as timer:
    assert_type(timer, Timer)
histogram.record(1.5)  # type: ignore[arg-type]

settings = Settings.from_environment({})
assert_type(settings, Settings)
assert_type(settings.constitutional_hashes, tuple[str, ...])
assert_type(settings.redis_url, str | None)
Settings(l1_cache_size="100")  # type: ignore[arg-type]
settings.l1_cache_size = 100  # type: ignore[misc]

monitor = Monitor(Targets(hit_rate=0.9), history=10)
assert_type(monitor.observe(Reading(at=0.0, requests=0)), tuple[Alert, ...])
assert_type(monitor.history, tuple[Reading, ...])
assert_type(monitor.on_alert(print), Callable[[], None])
monitor.on_alert("print")  # type: ignore[arg-type]


async def application(*scope_receive_send: object) -> None:
    raise NotImplementedError


http: HttpSource = PerformanceMiddleware(application, validator=ComplianceValidator())
assert_type(http.counts(), HttpCounts)
