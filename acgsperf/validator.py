"""The compliance gate of a service: checks hashes in requests, headers, the environment, and in a context."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from acgsperf._native.stats import HistogramSnapshot, ValidatorStats
from acgsperf._native.types import CONSTITUTIONAL_HASH, Verdict
from acgsperf.dispatch import HashValidator, LatencyHistogram, LRUCache
from acgsperf.errors import ComplianceError
from acgsperf.fingerprint import fingerprint
from acgsperf.settings import HASH_VARIABLE, Settings

HASH_HEADER: Final = "X-Constitutional-Hash"
HASH_FIELD: Final = "constitutional_hash"
_VARIABLES: Final = (HASH_VARIABLE, "FAST_PATH_ENABLED", "BATCH_PROCESSING_ENABLED")


@dataclass(frozen=True, slots=True)
class ContextVerdict:
    """The result of `validate_with_context`."""

    valid: bool
    cached: bool
    context: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ValidatorMetrics:
    """The counters of a `ComplianceValidator` since its last reset; `latency` is that of the timed calls, in ns."""

    verdicts: ValidatorStats
    fast_path_calls: int
    batches: int
    context_hits: int
    context_misses: int
    context_size: int
    latency: HistogramSnapshot


class ComplianceValidator:
    """Checks the constitutional hash of values, requests, headers and the environment.

    Args:
        expected: the accepted hash or hashes, as for `HashValidator`.
        fast_path: True makes `validate` the compiled check itself: calls are counted, not timed. False also times every
            call, which costs about ten times as much.
        batch: True makes `validate_many` one compiled call, False one call for each item.
        context_cache_size: the number of results that `validate_with_context` keeps.
        context_ttl: how long it keeps them, in seconds.
        clock: as for `LRUCache`.
        on_reject: as for `HashValidator`.

    Raises:
        TypeError, ValueError: as `HashValidator` and `LRUCache` do.
    """

    def __init__(
        self,
        expected: str | Iterable[str] = CONSTITUTIONAL_HASH,
        *,
        fast_path: bool = True,
        batch: bool = True,
        context_cache_size: int = 50_000,
        context_ttl: float = 3600.0,
        clock: Callable[[], float] | None = None,
        on_reject: Callable[[object], object] | None = None,
    ) -> None:
        self._hashes = HashValidator(expected, on_reject=on_reject)
        self._contexts: LRUCache[tuple[str, str], bool] = LRUCache(context_cache_size, context_ttl, clock=clock)
        self._latency = LatencyHistogram()
        self._timed_calls = 0
        self._batched_items = 0
        self._context_calls = 0
        self.batch = batch
        self.batches: int = 0
        self.fast_path = fast_path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Create a validator from environment variables.

        `CONSTITUTIONAL_HASH` is the accepted hash, or several separated by commas; `FAST_PATH_ENABLED` and
        `BATCH_PROCESSING_ENABLED` are the switches `fast_path` and `batch`.

        Raises:
            SettingsError: names the variable, its value and what was expected.
        """
        # Only these, so that a bad address of a server does not matter here.
        settings = Settings.from_environment({name: environ[name] for name in _VARIABLES if name in environ})
        return cls(
            settings.constitutional_hashes,
            fast_path=settings.fast_path_enabled,
            batch=settings.batch_processing_enabled,
        )

    @property
    def expected(self) -> tuple[str, ...]:
        """The accepted hashes, the current one first."""
        return self._hashes.expected

    @property
    def verdicts(self) -> ValidatorStats:
        """The counters of `metrics` alone, without the percentiles."""
        return self._hashes.stats()

    @property
    def validation_time(self) -> LatencyHistogram:
        """The live histogram of the timed calls, in ns."""
        return self._latency

    @property
    def fast_path(self) -> bool:
        """Whether `validate` is the compiled check itself; may be changed at any time."""
        return self._fast_path

    @fast_path.setter
    def fast_path(self, enabled: bool) -> None:
        self._fast_path = enabled
        # An instance attribute, so that the fast path runs no Python code between the caller and the compiled check.
        self.validate: Callable[[object], bool] = self._hashes.validate if enabled else self._validate_timed

    def _validate_timed(self, value: object, /) -> bool:
        started = time.perf_counter_ns()
        valid = self._hashes.validate(value)
        self._latency.record(time.perf_counter_ns() - started)
        self._timed_calls += 1
        return valid

    def validate_many(self, values: Iterable[object]) -> list[bool]:
        """Validate each item; the values may be of any type."""
        if not self.batch:
            return [self.validate(value) for value in values]
        # A list first, so that nothing is counted if the iterator raises.
        verdicts = self._hashes.validate_many(list(values))
        self.batches += 1
        self._batched_items += len(verdicts)
        return verdicts

    async def validate_async(self, value: object) -> bool:
        """Validate, for callers that await; it never waits."""
        return self.validate(value)

    async def validate_many_async(self, values: Iterable[object]) -> list[bool]:
        """Validate each item, for callers that await; it never waits."""
        return self.validate_many(values)

    def validate_with_context(self, value: object, context: Mapping[str, object]) -> ContextVerdict:
        """Check a hash in a context. The result is kept for `context_ttl` seconds by hash and context.

        A value that is not even a hash is rejected and not kept, so that a client cannot fill the memory.

        Raises:
            TypeError, ValueError: if the context is not a JSON-like mapping (see `fingerprint`).
        """
        if not isinstance(context, Mapping):
            raise TypeError(f"context must be a mapping, got {context!r:.100}")
        address = fingerprint(dict(context))
        verdict = self._hashes.classify(value)
        self._context_calls += 1
        if not isinstance(value, str) or verdict is Verdict.MALFORMED:
            return ContextVerdict(False, False, context)
        # A subclass of str may lie in __eq__ and __hash__; its characters do not.
        key = (str.__str__(value), address)
        known = self._contexts.get(key)
        if known is not None:
            return ContextVerdict(known, True, context)
        self._contexts.set(key, bool(verdict))
        return ContextVerdict(bool(verdict), False, context)

    def validate_environment(self, environ: Mapping[str, str] = os.environ) -> bool:
        """Return whether `CONSTITUTIONAL_HASH` is set to an accepted hash, or to several separated by commas."""
        return all(self.validate(item.strip()) for item in environ.get(HASH_VARIABLE, "").split(","))

    def validate_headers(self, headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]) -> bool:
        """Return whether the header `X-Constitutional-Hash` is an accepted hash; False if it is missing.

        If there are several, each must be accepted, because the next reader of the request may use another one.

        Args:
            headers: a mapping, or pairs of str or bytes as in ASGI. The case of names does not matter.
        """
        name = HASH_HEADER.lower()
        pairs: Iterable[tuple[str | bytes, str | bytes]] = headers.items() if isinstance(headers, Mapping) else headers
        found = [_text(value) for key, value in pairs if str(_text(key)).lower() == name]
        return all(self.validate(value) for value in found or (None,))

    def validate_request(self, request: object) -> bool:
        """Return whether the field `constitutional_hash` is an accepted hash; False if it is missing.

        Args:
            request: a mapping. Any other type has no such field.
        """
        return self.validate(request.get(HASH_FIELD) if isinstance(request, Mapping) else None)

    def require(self, value: object) -> None:
        """Raise unless the hash is accepted.

        Raises:
            ComplianceError: names the expected and the found hash.
        """
        if not self.validate(value):
            raise ComplianceError(self.expected, value)

    def response_headers(self) -> dict[str, str]:
        """Return the headers that tell a client that its hash was verified."""
        return {
            HASH_HEADER: self.expected[0],
            "X-Constitutional-Compliance": "verified",
            "X-Performance-Targets": "P99<5.0ms",
        }

    def metrics(self) -> ValidatorMetrics:
        """Return the counters, and the percentiles of the timed calls."""
        verdicts = self._hashes.stats()
        contexts = self._contexts.stats()
        return ValidatorMetrics(
            verdicts=verdicts,
            fast_path_calls=verdicts.validations - self._timed_calls - self._batched_items - self._context_calls,
            batches=self.batches,
            context_hits=contexts.hits,
            context_misses=contexts.misses,
            context_size=contexts.size,
            latency=self._latency.snapshot(),
        )

    def reset_metrics(self) -> None:
        """Set the counters to zero and drop the kept results."""
        self._hashes.reset_stats()
        self._contexts.clear()
        self._contexts.reset_stats()
        self._latency.reset()
        self._timed_calls = self._batched_items = self._context_calls = self.batches = 0

    def optimize(self) -> tuple[str, ...]:
        """Remove expired results; return a description of what was removed, or nothing."""
        before = len(self._contexts)
        removed = self._contexts.expire()
        return (f"removed {removed} expired contexts of {before}",) if removed else ()


def _text(written: str | bytes) -> str:
    # The encoding of HTTP: every byte is a character.
    return written.decode("latin-1") if isinstance(written, bytes) else written
