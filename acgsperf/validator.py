"""The compliance gate of a service: hashes alone, in a context, from the environment, headers and requests."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from acgsperf._native.types import CONSTITUTIONAL_HASH, HistogramSnapshot, ValidatorStats, Verdict
from acgsperf.dispatch import HashValidator, LatencyHistogram, LRUCache
from acgsperf.errors import ComplianceError
from acgsperf.fingerprint import fingerprint
from acgsperf.settings import HASH_VARIABLE, Settings

HASH_HEADER: Final = "X-Constitutional-Hash"
HASH_FIELD: Final = "constitutional_hash"
_VARIABLES: Final = (HASH_VARIABLE, "FAST_PATH_ENABLED", "BATCH_PROCESSING_ENABLED")


@dataclass(frozen=True, slots=True)
class ContextVerdict:
    """The answer of `validate_with_context`."""

    valid: bool
    cached: bool
    context: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ValidatorMetrics:
    """What a `ComplianceValidator` did since its last reset; `latency` is in ns, of the calls that were timed."""

    verdicts: ValidatorStats
    fast_path_calls: int
    batches: int
    context_hits: int
    context_misses: int
    context_size: int
    latency: HistogramSnapshot


class ComplianceValidator:
    """Checks the constitutional hash wherever a service meets it.

    With `fast_path`, `validate` is the compiled check itself and takes no time of its own: it is counted, not timed.
    Without, every call is timed. With `batch`, `validate_many` is one compiled call; without, one call an item.

    Args:
        expected: the accepted hash or hashes, as for `HashValidator`.
        fast_path: whether single validations go straight to the compiled check.
        batch: whether many validations are one call.
        context_cache_size: answers remembered by `validate_with_context`.
        context_ttl: seconds for which they are.
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
        self.batches = 0
        self.fast_path = fast_path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """A validator as the environment says.

        `CONSTITUTIONAL_HASH` holds the accepted hash, or several with commas; `FAST_PATH_ENABLED` and
        `BATCH_PROCESSING_ENABLED` are the switches `fast_path` and `batch`.

        Raises:
            SettingsError: names the variable, its value and what was expected.
        """
        # These alone: who asks for a validator is not told of a bad address of a server.
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
    def fast_path(self) -> bool:
        """Whether `validate` goes straight to the compiled check; may be switched at any time."""
        return self._fast_path

    @fast_path.setter
    def fast_path(self, enabled: bool) -> None:
        self._fast_path = enabled
        # An instance attribute: on the fast path no Python code stands between the caller and the compiled check.
        self.validate: Callable[[object], bool] = self._hashes.validate if enabled else self._validate_timed

    def _validate_timed(self, value: object, /) -> bool:
        started = time.perf_counter_ns()
        valid = self._hashes.validate(value)
        self._latency.record(time.perf_counter_ns() - started)
        self._timed_calls += 1
        return valid

    def validate_many(self, values: Iterable[object]) -> list[bool]:
        """`validate` for each item; the values may be of any type."""
        if not self.batch:
            return [self.validate(value) for value in values]
        # A list, so that what its iterator raises comes before anything is counted.
        verdicts = self._hashes.validate_many(list(values))
        self.batches += 1
        self._batched_items += len(verdicts)
        return verdicts

    async def validate_async(self, value: object) -> bool:
        """`validate`, for callers that await; it never waits."""
        return self.validate(value)

    async def validate_many_async(self, values: Iterable[object]) -> list[bool]:
        """`validate_many`, for callers that await; it never waits."""
        return self.validate_many(values)

    def validate_with_context(self, value: object, context: Mapping[str, object]) -> ContextVerdict:
        """Whether a hash is accepted in a context; remembered by both for an hour.

        What is not even a hash is refused and not remembered: a client cannot fill the memory with it.

        Raises:
            TypeError, ValueError: when the context is not a JSON-like mapping (see `fingerprint`).
        """
        if not isinstance(context, Mapping):
            raise TypeError(f"context must be a mapping, not {context!r:.100}")
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
        """Whether `CONSTITUTIONAL_HASH` is set to an accepted hash, or to several with commas."""
        return all(self.validate(item.strip()) for item in environ.get(HASH_VARIABLE, "").split(","))

    def validate_headers(self, headers: Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]) -> bool:
        """Whether `X-Constitutional-Hash`, in any case, holds an accepted hash; one that is missing does not.

        Where there are several each has to: what reads the request next may take another one.

        Args:
            headers: a mapping, or pairs as ASGI has them, which may be bytes.
        """
        name = HASH_HEADER.lower()
        pairs: Iterable[tuple[str | bytes, str | bytes]] = headers.items() if isinstance(headers, Mapping) else headers
        found = [_text(value) for key, value in pairs if str(_text(key)).lower() == name]
        return all(self.validate(value) for value in found or (None,))

    def validate_request(self, request: object) -> bool:
        """Whether the field `constitutional_hash` holds an accepted hash; one that is missing does not.

        Args:
            request: a mapping. Anything else, as a stranger's JSON may be, has no such field.
        """
        return self.validate(request.get(HASH_FIELD) if isinstance(request, Mapping) else None)

    def require(self, value: object) -> None:
        """Pass for an accepted hash.

        Raises:
            ComplianceError: names the expected and the found hash.
        """
        if not self.validate(value):
            raise ComplianceError(self.expected, value)

    def response_headers(self) -> dict[str, str]:
        """The headers that tell a client what was verified."""
        return {
            HASH_HEADER: self.expected[0],
            "X-Constitutional-Compliance": "verified",
            "X-Performance-Targets": "P99<5.0ms",
        }

    def metrics(self) -> ValidatorMetrics:
        """The counters, and true percentiles of the timed calls."""
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
        """Set the counters to zero and forget the remembered contexts."""
        self._hashes.reset_stats()
        self._contexts.clear()
        self._contexts.reset_stats()
        self._latency.reset()
        self._timed_calls = self._batched_items = self._context_calls = self.batches = 0

    def optimize(self) -> tuple[str, ...]:
        """Remove expired contexts; says what was done, and nothing when nothing was."""
        before = len(self._contexts)
        removed = self._contexts.expire()
        return (f"removed {removed} expired of {before} contexts",) if removed else ()


def _text(written: str | bytes) -> str:
    # HTTP's own encoding: every byte is a character.
    return written.decode("latin-1") if isinstance(written, bytes) else written
