"""What a pool tells: plain values, without a word to the server."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from acgsperf._native.arguments import checked_bool, checked_callable, checked_int, checked_seconds
from acgsperf._native.types import HistogramSnapshot

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

TARGET_UTILIZATION: Final = 0.8
_TIMES: Final = (
    "timeout",
    "check_timeout",
    "max_lifetime",
    "max_idle",
    "reset_timeout",
    "connect_timeout",
    "close_timeout",
    "housekeeping_interval",
)


class CloseReason(StrEnum):
    """Why a pool let go of a connection."""

    LOST = "lost"
    """The server, the network or the borrower closed it."""
    CHECK_FAILED = "check_failed"
    """It did not answer the check before it was handed out."""
    RESET_FAILED = "reset_failed"
    """Its session could not be reset in time."""
    LIFETIME = "lifetime"
    """It was older than `max_lifetime`."""
    IDLE = "idle"
    """Nobody needed it for `max_idle`."""
    SHRUNK = "shrunk"
    """`resize` or `optimize` made the pool smaller."""
    DRAINED = "drained"
    """`drain` asked for new ones."""
    CLOSED = "closed"
    """The pool was closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The options of a `ConnectionPool`, which documents them, with their defaults; checked."""

    min_size: int = 20
    max_size: int = 100
    timeout: float = 30.0
    max_waiting: int | None = None
    check_after: float = 0.5
    check_timeout: float = 2.0
    max_lifetime: float = 3600.0
    max_idle: float = 600.0
    leak_threshold: float | None = None
    reset: bool = True
    reset_timeout: float = 5.0
    connect_timeout: float = 5.0
    close_timeout: float = 2.0
    init: "Callable[[Connection], Awaitable[None]] | None" = None
    housekeeping_interval: float = 1.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        checked: dict[str, object] = {name: checked_seconds(name, getattr(self, name)) for name in _TIMES}
        checked["min_size"], checked["max_size"] = checked_sizes(self.min_size, self.max_size)
        checked["check_after"] = checked_seconds("check_after", self.check_after, zero=True)
        if self.leak_threshold is not None:
            checked["leak_threshold"] = checked_seconds("leak_threshold", self.leak_threshold)
        if self.max_waiting is not None:
            checked["max_waiting"] = most = checked_int("max_waiting", self.max_waiting)
            if most < 0:
                raise ValueError(f"max_waiting must be None or at least 0, not {most}")
        checked_bool("reset", self.reset)
        checked_callable("init", self.init)
        if not callable(self.clock):
            raise TypeError(f"clock must be callable, not {self.clock!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def as_keywords(self) -> dict[str, Any]:
        """The options as the keyword arguments that make another pool like this."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment, and its counters since it was opened.

    `in_use` counts whatever is open and not idle: lent, being checked or being reset. `wait` and `use` are in ns: what
    callers waited for a connection, and how long they kept it.
    """

    size: int
    idle: int
    in_use: int
    waiting: int
    connecting: int
    min_size: int
    max_size: int
    target_size: int
    opened: int
    closed: Mapping[CloseReason, int]
    failed_connects: int
    timeouts: int
    saturations: int
    leaks: int
    wait: HistogramSnapshot
    use: HistogramSnapshot

    @property
    def utilization(self) -> float:
        """The share of `max_size` that is in use, between 0 and 1; more only while a pool shrinks."""
        return self.in_use / self.max_size


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """The answer of a pool's health check; `latency_ns` is None when nothing was free to ask the server with."""

    healthy: bool
    latency_ns: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PoolOptimization:
    """What `optimize` found and did.

    `demand` is the most that was in use and waited for at once since the last time, `utilization` that demand as a
    share of the connections kept then.
    """

    demand: int
    utilization: float
    old_target_size: int
    target_size: int
    opened: int
    closed: int


def checked_sizes(min_size: int, max_size: int) -> tuple[int, int]:
    """Bounds that make sense."""
    least, most = checked_int("min_size", min_size), checked_int("max_size", max_size)
    if not 0 <= least <= most or most < 1:
        raise ValueError(f"sizes must be 0 <= min_size <= max_size and max_size >= 1, not {least} and {most}")
    return least, most
