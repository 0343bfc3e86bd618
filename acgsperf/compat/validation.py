"""The surface of `services.shared.constitutional.validation`, on `ComplianceValidator`.

`validate_hash` of a validator is the bound method of the compiled core, so a valid hash runs no Python code. The
counters are read from the core when they are needed. A refused hash runs Python code that records it as known bad.
"""

import os
import re
import time
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from xxhash import xxh3_128_hexdigest

from acgsperf._native.types import CONSTITUTIONAL_HASH
from acgsperf.compat._counters import derived, percentiles_ms, seconds_per_call
from acgsperf.dispatch import HashValidator, LRUCache
from acgsperf.fingerprint import fingerprint
from acgsperf.settings import HASH_VARIABLE
from acgsperf.validator import ComplianceValidator

__all__ = [
    "CONSTITUTIONAL_HASH",
    "PERFORMANCE_TARGETS",
    "ConstitutionalValidator",
    "UltraFastConstitutionalValidator",
    "async_validate_constitutional_hash",
    "create_constitutional_headers",
    "ensure_constitutional_compliance",
    "get_constitutional_validator",
    "get_performance_metrics",
    "validate_constitutional_hash",
    "validate_environment",
]

PERFORMANCE_TARGETS: Final[dict[str, float]] = {
    "p99_latency_ms": 5.0,
    "p95_latency_ms": 2.0,
    "p50_latency_ms": 1.0,
    "validation_latency_ms": 0.1,
    "min_throughput_rps": 1000,
    "min_cache_hit_rate": 0.95,
    "constitutional_compliance": 1.0,
}

_MAX_CONTEXTS: Final = 50_000
_CONTEXT_TTL_S: Final = 3600.0
_MAX_KNOWN_BAD: Final = 50_000
_MAX_PLAIN_LENGTH: Final = 64


class _KnownBadHashes:
    """The latest 50,000 refused strings. A long string, which a client may send, is stored as a digest."""

    def __init__(self) -> None:
        self.entries: LRUCache[str, None] = LRUCache(_MAX_KNOWN_BAD)

    def add(self, value: object) -> None:
        """Add a string; other types are ignored. The `LRUCache` counts whether the string was known."""
        if isinstance(value, str):
            self.entries.setdefault(_compact(value))

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and _compact(value) in self.entries


def _compact(value: str) -> str:
    # A subclass of str may override __eq__ and __hash__; `str.__str__` returns its real characters.
    text = str.__str__(value)
    return text if len(text) <= _MAX_PLAIN_LENGTH else xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


@cache
def _fast_path_s() -> float:
    return seconds_per_call(HashValidator().validate, CONSTITUTIONAL_HASH)


class UltraFastConstitutionalValidator:
    """Validates constitutional hashes, and counts the validations.

    You may set the counters. `_total_validation_time` is measured for calls off the fast path. For calls on the fast
    path it is the number of calls times the cost of one, because reading a clock takes longer than such a call.
    """

    def __init__(self) -> None:
        self._known_bad_hashes = _KnownBadHashes()
        self._gate = ComplianceValidator(CONSTITUTIONAL_HASH, on_reject=self._known_bad_hashes.add)
        self.constitutional_hash = CONSTITUTIONAL_HASH
        self._known_good_hashes = frozenset(self._gate.expected)
        self._validation_cache: LRUCache[tuple[str, str], bool] = LRUCache(_MAX_CONTEXTS, _CONTEXT_TTL_S)
        # Valid hashes validated off the fast path, and the number of valid hashes when it was disabled.
        self._off_path_hits = 0
        self._disabled_at: int | None = None
        self._fast_path_enabled = True

    # For callers that match a hash with the pattern.
    _compiled_hash_pattern: Final = re.compile(r"[0-9a-f]{16}\Z")

    _validation_count: int = derived(lambda self: self._gate.verdicts.validations)
    _cache_hits: int = derived(lambda self: self._valid() + self._known_bad_hashes.entries.stats().hits)
    _cache_misses: int = derived(
        lambda self: self._gate.verdicts.validations - self._valid() - self._known_bad_hashes.entries.stats().hits
    )
    _fast_path_hits: int = derived(lambda self: self._valid() - self._all_off_path_hits())
    _batch_validations: int = derived(lambda self: self._gate.batches)
    _total_validation_time: float = derived(lambda self: self._validation_s())

    def _valid(self) -> int:
        return self._gate.verdicts.valid

    def _all_off_path_hits(self) -> int:
        since = 0 if self._disabled_at is None else self._valid() - self._disabled_at
        return self._off_path_hits + since

    def _validation_s(self) -> float:
        timed = self._gate.metrics().latency
        return timed.count * timed.mean / 1e9 + (self._gate.verdicts.validations - timed.count) * _fast_path_s()

    @property
    def _fast_path_enabled(self) -> bool:
        return self._gate.fast_path

    @_fast_path_enabled.setter
    def _fast_path_enabled(self, enabled: bool) -> None:
        if enabled:
            self._off_path_hits, self._disabled_at = self._all_off_path_hits(), None
        elif self._disabled_at is None:
            self._disabled_at = self._valid()
        calls_the_core = self._calls_the_core()
        self._gate.fast_path = bool(enabled)
        # Callers get the method of the core without a Python frame, unless a subclass or a patch replaced the method.
        if calls_the_core:
            vars(self)["validate_hash"] = self._gate.validate

    def _calls_the_core(self) -> bool:
        """Return whether `validate_hash` has not been replaced by a subclass or a patch."""
        of_instance = vars(self).get("validate_hash", self._gate.validate)
        # `==`, because each access to the method of the gate creates a new object.
        return type(self).validate_hash is _VALIDATE_HASH and of_instance == self._gate.validate

    @property
    def _batch_processing_enabled(self) -> bool:
        return self._gate.batch

    @_batch_processing_enabled.setter
    def _batch_processing_enabled(self, enabled: bool) -> None:
        self._gate.batch = bool(enabled)

    def validate_hash(self, value: object, /) -> bool:
        """Return whether `value` is the constitutional hash; False for any other value of any type."""
        return self._gate.validate(value)

    async def async_validate_hash(self, hash_value: object) -> bool:
        """Like `validate_hash`, for callers that await. It never blocks."""
        return self.validate_hash(hash_value)

    async def batch_validate_hashes(self, hash_values: Iterable[object]) -> list[bool]:
        """Like `validate_hash`, for each item. With batch processing, more than one item count as one batch."""
        values = list(hash_values)
        # A method that replaced `validate_hash` must be called for each item.
        if len(values) > 1 and self._batch_processing_enabled and self._calls_the_core():
            return self._gate.validate_many(values)
        return [self.validate_hash(value) for value in values]

    def validate_with_context(self, hash_value: object, context: dict[str, Any]) -> dict[str, Any]:
        """Return `valid`, `cached` and the `context` itself. The result is cached for an hour by hash and context.

        With a context that is not JSON-like, the result is not cached.
        """
        valid = self.validate_hash(hash_value)
        key = _context_key(hash_value, context)
        cached = key is not None and key in self._validation_cache
        if key is not None and not cached:
            self._validation_cache.set(key, valid)
        return {"valid": valid, "cached": cached, "context": context}

    def validate_environment(self) -> dict[str, Any]:
        """Return whether the variable `CONSTITUTIONAL_HASH` holds the hash, and the validation metrics."""
        started = time.perf_counter()
        hash_value = os.environ.get(HASH_VARIABLE, "")
        is_testing = os.environ.get("TESTING", "").strip().lower() in {"1", "true", "yes", "on"}
        compliant = self.validate_hash(hash_value)
        check_ms = (time.perf_counter() - started) * 1e3
        return {
            "constitutional_compliance": compliant,
            "hash_value": hash_value,
            "is_testing": is_testing,
            "performance_metrics": {
                "cache_hit_rate": self._hit_rate(),
                "avg_latency_ms": self._average_ms(),
                "total_validations": self._validation_count,
                "fast_path_hits": self._fast_path_hits,
                "batch_validations": self._batch_validations,
                "environment_check_ms": check_ms,
                "performance_target_met": check_ms <= PERFORMANCE_TARGETS["p99_latency_ms"],
            },
            "targets_met": self._targets_met(compliant),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    def get_performance_summary(self) -> dict[str, Any]:
        """Return the counters, and which targets they meet."""
        return {
            "cache_hit_rate": self._hit_rate(),
            "avg_latency_ms": self._average_ms(),
            "total_validations": self._validation_count,
            "cache_hits": self._cache_hits,
            "cache_misses": self._cache_misses,
            "performance_targets": dict(PERFORMANCE_TARGETS),
            "targets_met": self._targets_met(self.constitutional_hash in self._known_good_hashes),
        }

    def get_detailed_metrics(self) -> dict[str, Any]:
        """Return counters, sizes and switches. `latency_percentiles` are those of calls off the fast path."""
        validations = self._validation_count
        latency = self._gate.metrics().latency
        return {
            "performance_summary": {
                "total_validations": validations,
                "cache_hit_rate": self._hit_rate(),
                "fast_path_rate": self._fast_path_hits / validations if validations else 0.0,
                "avg_latency_ms": self._average_ms(),
                "batch_validations": self._batch_validations,
                "meets_p99_target": self._meets_p99(),
                "meets_validation_target": self._average_ms() <= PERFORMANCE_TARGETS["validation_latency_ms"],
            },
            "cache_statistics": {
                "cache_hits": self._cache_hits,
                "cache_misses": self._cache_misses,
                "known_good_hashes": len(self._known_good_hashes),
                "known_bad_hashes": len(self._known_bad_hashes),
                "context_cache_size": len(self._validation_cache),
            },
            "optimization_status": {
                "fast_path_enabled": self._fast_path_enabled,
                "batch_processing_enabled": self._batch_processing_enabled,
            },
            "latency_percentiles": percentiles_ms(latency),
            "constitutional_hash": self.constitutional_hash,
            "timestamp": time.time(),
        }

    def reset_metrics(self) -> None:
        """Set the counters to zero, and empty the context cache. Known bad hashes stay known."""
        self._gate.reset_metrics()
        self._known_bad_hashes.entries.reset_stats()
        self._validation_cache.clear()
        self._off_path_hits = 0
        if self._disabled_at is not None:
            self._disabled_at = 0
        self._validation_count = self._cache_hits = self._cache_misses = 0
        self._fast_path_hits = self._batch_validations = 0
        self._total_validation_time = 0.0

    def optimize_performance(self) -> dict[str, Any]:
        """Remove expired contexts, and recommend changes that only the owner of the validator should make."""
        before = len(self._validation_cache)
        removed = self._validation_cache.expire()
        recommendations = []
        if not self._fast_path_enabled:
            recommendations.append("enable the fast path: without it, timing makes every call several times slower")
        if not self._batch_processing_enabled:
            recommendations.append("enable batch processing: without it, a batch is validated call by call")
        if self._validation_count and self._hit_rate() < PERFORMANCE_TARGETS["min_cache_hit_rate"]:
            recommendations.append("find the client that sends many different bad hashes")
        return {
            "optimizations_applied": [f"removed {removed} expired of {before} contexts"] if removed else [],
            "recommendations": recommendations,
            "current_metrics": self.get_performance_summary(),
            "constitutional_hash": self.constitutional_hash,
        }

    def _hit_rate(self) -> float:
        asked = self._cache_hits + self._cache_misses
        return self._cache_hits / asked if asked else 0.0

    def _average_ms(self) -> float:
        count = self._validation_count
        return self._total_validation_time / count * 1e3 if count else 0.0

    def _meets_p99(self) -> bool:
        # The average counts too, because callers may set the counters it comes from.
        latency_ms = max(self._gate.metrics().latency.p99 / 1e6, self._average_ms())
        return latency_ms <= PERFORMANCE_TARGETS["p99_latency_ms"]

    def _targets_met(self, compliant: bool) -> dict[str, bool]:
        return {
            "p99_latency": self._meets_p99(),
            "cache_hit_rate": self._hit_rate() >= PERFORMANCE_TARGETS["min_cache_hit_rate"],
            "constitutional_compliance": compliant,
        }


_VALIDATE_HASH: Final = UltraFastConstitutionalValidator.validate_hash

ConstitutionalValidator = UltraFastConstitutionalValidator


def _context_key(hash_value: object, context: object) -> tuple[str, str] | None:
    if not isinstance(hash_value, str):
        return None
    try:
        return _compact(hash_value), fingerprint(context)
    except (TypeError, ValueError):
        return None


_validator = UltraFastConstitutionalValidator()


def get_constitutional_validator() -> UltraFastConstitutionalValidator:
    """Return the validator that the functions of this module use."""
    return _validator


def validate_constitutional_hash(hash_value: object) -> bool:
    """Return whether `hash_value` is the constitutional hash."""
    return _validator.validate_hash(hash_value)


async def async_validate_constitutional_hash(hash_value: object) -> bool:
    """Like `validate_constitutional_hash`, for callers that await."""
    return await _validator.async_validate_hash(hash_value)


def validate_environment() -> dict[str, Any]:
    """See `UltraFastConstitutionalValidator.validate_environment`."""
    return _validator.validate_environment()


def get_performance_metrics() -> dict[str, Any]:
    """See `UltraFastConstitutionalValidator.get_performance_summary`."""
    return _validator.get_performance_summary()


def ensure_constitutional_compliance() -> bool:
    """Return True if the environment variable `CONSTITUTIONAL_HASH` holds the constitutional hash.

    Raises:
        RuntimeError: if it does not; the message names the expected and the found hash.
    """
    environment = _validator.validate_environment()
    if not environment["constitutional_compliance"]:
        found = environment["hash_value"]
        raise RuntimeError(
            f"Constitutional compliance violation: expected '{CONSTITUTIONAL_HASH}', found {found!r:.200}"
        )
    return True


def create_constitutional_headers() -> dict[str, str]:
    """Return the response headers that tell a client what was verified."""
    return _validator._gate.response_headers()
