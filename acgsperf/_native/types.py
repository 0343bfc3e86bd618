"""Constants and plain values that both implementations of the core share."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

CONSTITUTIONAL_HASH: Final = "cdd01ef066bc6cf2"
HASH_LENGTH: Final = 16
MAX_ENTRIES: Final = 2**30


class Verdict(IntEnum):
    """The result of `HashValidator.classify`; only `VALID` is true."""

    MALFORMED = -1
    MISMATCH = 0
    VALID = 1

    def __bool__(self) -> bool:
        return self is Verdict.VALID


class EvictionReason(StrEnum):
    """Why a cache removed an entry without a call that removes it."""

    SIZE = "size"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class ValidatorStats:
    """Counters of a `HashValidator` since its creation or last reset."""

    valid: int
    mismatched: int
    malformed: int

    @property
    def validations(self) -> int:
        """The number of validated values."""
        return self.valid + self.mismatched + self.malformed


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters of an `LRUCache` since its creation or last reset, and its size now."""

    hits: int
    misses: int
    insertions: int
    updates: int
    evictions: int
    expirations: int
    size: int
    maxsize: int

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses), between 0 and 1; 0.0 if there were none."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 0.0


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """The usual figures of a `LatencyHistogram` at one moment; all except `count` are in nanoseconds."""

    count: int
    min: int
    max: int
    mean: float
    stddev: float
    p50: int
    p90: int
    p95: int
    p99: int
    p999: int
