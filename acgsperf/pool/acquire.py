"""What `ConnectionPool.acquire` returns, and the choice of a replica for readers."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from acgsperf.balance.two_choices import two_of
from acgsperf.errors import PoolClosed, PoolError, PoolSaturated, PoolTimeout, PoolUnhealthy
from acgsperf.pool.lender import Lender

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from acgsperf.pool.slot import CallStack, Lease

__all__ = ["Acquire"]

# The share of the timeout that a reader waits for a replica. The rest is for the primary.
_REPLICA_SHARE: Final = 0.5


class Acquire:
    """The result of `ConnectionPool.acquire`: await it, or use it with `async with`."""

    __slots__ = ("_borrower", "_entered", "_lease", "_lender", "_readonly", "_replica", "_timeout")

    def __init__(self, lender: Lender, timeout: float, readonly: bool, borrower: "CallStack | None") -> None:
        self._lender = lender
        self._timeout = timeout
        self._readonly = readonly
        self._borrower = borrower
        self._lease: Lease | None = None
        self._replica: Lender | None = None
        self._entered = False

    def __await__(self) -> "Generator[Any, None, Lease]":
        return self._take().__await__()

    def _take(self) -> "Coroutine[Any, Any, Lease]":
        replica = _better_replica(self._lender.replicas) if self._readonly else None
        if replica is None:
            return self._lender.take(self._timeout, self._borrower)
        return self._take_from(replica)

    async def _take_from(self, replica: Lender) -> "Lease":
        start = time.monotonic()
        if replica.ejection is not None:
            replica.note_probe()
        try:
            lease = await replica.take(self._timeout * _REPLICA_SHARE, self._borrower)
        except (PoolTimeout, PoolUnhealthy, PoolSaturated, PoolClosed):
            remaining = self._timeout - (time.monotonic() - start)
            return await self._lender.take(max(remaining, 0.0), self._borrower)
        self._replica = replica
        return lease

    async def __aenter__(self) -> "Lease":
        if self._entered:
            raise PoolError("this context has been entered already; call acquire() once for each `async with`")
        self._entered = True
        try:
            self._lease = lease = await self._take()
        except BaseException:
            self._entered = False
            raise
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease, self._entered = self._lease, None, False
        assert lease is not None
        replica, self._replica = self._replica, None
        if error is not None or (replica is not None and replica.ejection is not None):
            self._note_end(lease, replica, error)
        reset = self._lender.take_back(lease)
        # A caller whose deadline passed, or that was cancelled, does not wait for a server that may not answer.
        if reset is not None and not isinstance(error, TimeoutError | asyncio.CancelledError):
            await reset

    def _note_end(self, lease: "Lease", replica: Lender | None, error: BaseException | None) -> None:
        if replica is not None:
            replica.note_reader(error)
        elif error is not None and not self._readonly:
            self._lender.note_error(lease, error)


def _better_replica(replicas: Sequence[Lender]) -> Lender | None:
    # A `Balancer` would eject a replica whose borrowers keep their connections for long. Here, only failures of the
    # server count, besides the health checks and the lag.
    healthy = [replica for replica in replicas if replica.available]
    if len(healthy) < 2:
        return healthy[0] if healthy else None
    one, other = two_of(healthy)
    known = bool(one.recent_use_s and other.recent_use_s)
    return one if one.load(known) <= other.load(known) else other
