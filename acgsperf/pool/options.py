"""The options of a pool, and the values that describe its state."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from acgsperf._native.arguments import checked_bool, checked_callable, checked_int, checked_seconds
from acgsperf._native.stats import HistogramSnapshot

if TYPE_CHECKING:
    from acgsperf.pool.slot import Connection

TARGET_UTILIZATION: Final = 0.8
MAX_MESSAGE_BYTES: Final = 256 << 20
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
    """Why a connection left the pool."""

    LOST = "lost"
    """The server, the network or the borrower closed it. Or the pool did, because the server sent a message that no
    query had asked for, or did not confirm a cancellation within `reset_timeout`."""
    CHECK_FAILED = "check_failed"
    """It did not answer a check."""
    RESET_FAILED = "reset_failed"
    """Its session could not be reset within `reset_timeout`."""
    LIFETIME = "lifetime"
    """It was older than `max_lifetime`."""
    IDLE = "idle"
    """It was idle for `max_idle`, and the pool had more connections than it keeps."""
    SHRUNK = "shrunk"
    """The pool had more than `max_size` connections: `resize` or `optimize` made it smaller, or the pool had replaced a
    connection that did not answer, and it answered later."""
    READ_ONLY = "read_only"
    """Its server refused a write because it is a standby or read-only, and another server was looked for."""
    DRAINED = "drained"
    """`drain` replaced it."""
    CLOSED = "closed"
    """The pool was closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """The options of a `ConnectionPool`, checked. `ConnectionPool` documents them."""

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
    max_message_bytes: int | None = MAX_MESSAGE_BYTES
    max_replica_lag: float | None = None
    init: "Callable[[Connection], Awaitable[None]] | None" = None
    housekeeping_interval: float = 1.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        checked: dict[str, object] = {name: checked_seconds(name, getattr(self, name)) for name in _TIMES}
        checked["min_size"], checked["max_size"] = checked_sizes(self.min_size, self.max_size)
        checked["check_after"] = checked_seconds("check_after", self.check_after, zero=True)
        for name in ("leak_threshold", "max_replica_lag"):
            if (seconds := getattr(self, name)) is not None:
                checked[name] = checked_seconds(name, seconds)
        for name, least in (("max_waiting", 0), ("max_message_bytes", 1)):
            if (limit := getattr(self, name)) is not None:
                checked[name] = most = checked_int(name, limit)
                if most < least:
                    raise ValueError(f"{name} must be None or at least {least}, got {most}")
        checked_bool("reset", self.reset)
        checked_callable("init", self.init)
        if not callable(self.clock):
            raise TypeError(f"clock must be callable, got {self.clock!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def as_keywords(self) -> dict[str, Any]:
        """Return the options as keyword arguments for another pool."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The state of a pool now, and its counters since it was created.

    Attributes:
        size: open connections.
        idle: connections that can be lent.
        in_use: open connections that are lent, being checked or being reset.
        waiting: callers that wait for a connection.
        connecting: connection attempts in flight.
        target_size: the number of connections that the pool keeps, between `min_size` and `max_size`.
        opened: connections opened.
        closed: connections closed, by reason.
        failed_connects: connection attempts that failed.
        timeouts: callers that got a `PoolTimeout`.
        saturations: callers that got a `PoolSaturated`.
        leaks: leases that were reported as leaks.
        failovers: how often the server turned out to be read-only although a borrower wanted to write.
        replica_lag_s: how far a replica lags behind its primary, in seconds; None if it is unknown.
        ejected: whether readers do not use this replica, because its server failed five of them in a row.
        oldest_wait_s: how long the first of the waiting callers has waited, in seconds; 0 if none waits.
        wait: how long callers waited for a connection, in ns.
        use: how long borrowers kept it, in ns.
        create: how long it took to open a connection, in ns, without failed attempts.
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
    oldest_wait_s: float
    wait: HistogramSnapshot
    use: HistogramSnapshot
    create: HistogramSnapshot
    failovers: int = 0
    replica_lag_s: float | None = None
    ejected: bool = False

    @property
    def utilization(self) -> float:
        """The share of `max_size` that is in use: from 0 to 1, or more while the pool shrinks or has replaced
        connections that do not answer."""
        return self.in_use / self.max_size


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """The result of a pool's health check.

    Attributes:
        healthy: whether the pool accepts callers.
        latency_ns: how long the server took to answer; None if it was not asked, because no connection was free.
        error: why the pool is unhealthy.
        role: `primary`, `read-only primary` or `standby`; None if it is unknown, as before PostgreSQL 14.
        lag_s: how far a replica lags behind its primary, in seconds; None if it is unknown.
    """

    healthy: bool
    latency_ns: int | None = None
    error: str | None = None
    role: str | None = None
    lag_s: float | None = None


@dataclass(frozen=True, slots=True)
class PoolOptimization:
    """What `optimize` found and did.

    Attributes:
        demand: the highest number of connections in use and waiting callers at once since the last call.
        utilization: `demand` divided by `old_target_size`.
        old_target_size: the number of connections that the pool kept before.
        target_size: the number that it keeps from now on.
        opened: connections that it opens in the background.
        closed: idle connections that it closes.
    """

    demand: int
    utilization: float
    old_target_size: int
    target_size: int
    opened: int
    closed: int


def checked_sizes(min_size: int, max_size: int) -> tuple[int, int]:
    """Return the bounds of a pool as integers, checked."""
    least, most = checked_int("min_size", min_size), checked_int("max_size", max_size)
    if not 0 <= least <= most or most < 1:
        raise ValueError(
            f"sizes must be 0 <= min_size <= max_size and max_size >= 1, got min_size={least}, max_size={most}"
        )
    return least, most
