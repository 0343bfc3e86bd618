"""What `ConnectionPool.acquire` returns, and the choice of a replica for readers."""

import asyncio
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

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

    __slots__ = ("_borrower", "_entered", "_lease", "_lender", "_readonly", "_timeout")

    def __init__(self, lender: Lender, timeout: float, readonly: bool, borrower: "CallStack | None") -> None:
        self._lender = lender
        self._timeout = timeout
        self._readonly = readonly
        self._borrower = borrower
        self._lease: Lease | None = None
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
        try:
            return await replica.take(self._timeout * _REPLICA_SHARE, self._borrower)
        except (PoolTimeout, PoolUnhealthy, PoolSaturated, PoolClosed):
            remaining = self._timeout - (time.monotonic() - start)
            return await self._lender.take(max(remaining, 0.0), self._borrower)

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
        if error is not None and not self._readonly:
            self._lender.note_error(lease, error)
        reset = self._lender.take_back(lease)
        # A caller whose deadline passed, or that was cancelled, does not wait for a server that may not answer.
        if reset is not None and not isinstance(error, TimeoutError | asyncio.CancelledError):
            await reset


def _better_replica(replicas: Sequence[Lender]) -> Lender | None:
    healthy = [replica for replica in replicas if replica.available]
    # The power of two choices: nearly as good as the best of all, but callers do not all choose the same replica.
    two = random.sample(healthy, min(2, len(healthy)))
    known = all(replica.recent_use_s for replica in two)
    return min(two, key=lambda replica: replica.load(known), default=None)
