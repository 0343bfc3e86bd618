"""Constants and enumerations that both implementations of the core share."""

from enum import IntEnum, StrEnum
from typing import Final, Literal

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


# The policies of an `AdaptiveCache`.
Policy = Literal["adaptive", "s3fifo", "lru"]
# The settings of an `AdaptiveCache`, in the order of their numbers.
SETTING_NAMES: Final = ("scan", "frequency", "recency", "s3fifo", "history", "lru")
