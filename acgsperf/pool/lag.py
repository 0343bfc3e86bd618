"""How far the replicas of a pool lag behind its primary.

The lag is measured by this process's clock: the pool asks the primary for the position in its log, and remembers when.
A replica lags for as long as it has not replayed a position that the primary had. So neither the clocks of the servers
nor a primary without writes mislead it. If the primary cannot be reached, replicas are compared with its last position.

If a replica has become a separate primary, its lag cannot be measured, and the pool does not use it.
"""

import asyncio
import logging
import time
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from acgsperf.pool.lender import Lender
from acgsperf.pool.options import PoolOptions
from acgsperf.pool.queries import Queries
from acgsperf.timeouts import time_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Replica", "ReplicaLags", "replica_lags"]

_log: Final = logging.getLogger("acgsperf.pool")
# pg_lsn minus '0/0' is a number of bytes.
_POSITION: Final = """
SELECT pg_is_in_recovery(),
    (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint,
    pg_postmaster_start_time()
"""
_MOST_SAMPLES: Final = 1_000


class Position(NamedTuple):
    """How far a server is; when it was started tells it from others."""

    in_recovery: bool
    position: int
    started: datetime


class Replica(NamedTuple):
    """A pool of a replica: its name, its queries and its lender."""

    name: str
    queries: Queries
    lender: Lender


class ReplicaLags:
    """Measures the replicas of one pool, and keeps readers from those that lag.

    Args:
        primary: the pool.
        replicas: the pools of its replicas.
        most: the greatest lag of a replica that is used, in seconds.
        timeout: seconds that each server has to answer.
    """

    def __init__(
        self,
        primary: Queries,
        replicas: "Sequence[Replica]",
        most: float,
        timeout: float,
    ) -> None:
        self._primary = primary
        self._replicas = replicas
        self._most = most
        self._timeout = timeout
        # When the primary had a position: the oldest one that a replica may lack comes first.
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MOST_SAMPLES)

    async def measure(self) -> None:
        """Ask all servers once."""
        asked = time.monotonic()
        found = await self._position(self._primary)
        # A standby in place of the primary has no position of its own.
        primary = None if found is None or found.in_recovery else found
        if primary is not None and (not self._samples or self._samples[-1][1] != primary.position):
            if self._samples and self._samples[-1][1] > primary.position:
                # Another primary, whose log is shorter.
                self._samples.clear()
            self._samples.append((asked, primary.position))
        positions = await asyncio.gather(*(self._position(replica.queries) for replica in self._replicas))
        now = time.monotonic()
        for replica, position in zip(self._replicas, positions, strict=True):
            if position is not None:
                self._note(replica, position, primary, now)
        # One that every replica has is not needed; the last one is.
        replayed = min((one.position for one in positions if one is not None), default=0)
        while len(self._samples) > 1 and self._samples[0][1] <= replayed:
            self._samples.popleft()

    async def _position(self, pool: Queries) -> Position | None:
        try:
            async with time_limit(self._timeout):
                row: Any = await pool.fetchrow(_POSITION)
        except Exception as error:
            # The pool itself reports servers that do not answer.
            _log.debug("%r: the replication lag is unknown (%r)", pool, error)
            return None
        return Position(*row)

    def _note(self, replica: Replica, found: Position, primary: Position | None, now: float) -> None:
        lender = replica.lender
        lag_s: float | None = 0.0
        if found.in_recovery:
            lag_s = next((now - at for at, needed in self._samples if needed > found.position), 0.0)
        elif primary is not None and primary.started != found.started:
            # After a failover, for example: what the primary gets does not reach it.
            lag_s = None
        lags = lag_s is None or lag_s > self._most
        if lags != lender.lags or (lags and (lag_s is None) != (lender.lag_s is None)):
            if lag_s is None:
                _log.warning(
                    "pool %r: this is a separate primary, not a replica of the pool's primary; readers use other "
                    "servers",
                    replica.name,
                )
            elif lags:
                _log.warning(
                    "pool %r: the replica lags %.1f s, max_replica_lag is %g s; readers use other servers",
                    *(replica.name, lag_s, self._most),
                )
            else:
                _log.info("pool %r: the replica lags %.1f s; readers use it again", replica.name, lag_s)
        lender.lag_s, lender.lags = lag_s, lags


def replica_lags(primary: Queries, replicas: "Sequence[Replica]", options: PoolOptions) -> ReplicaLags | None:
    """Return what measures the replicas; None if there are none, or their lag does not matter."""
    most = options.max_replica_lag
    return None if most is None or not replicas else ReplicaLags(primary, replicas, most, options.check_timeout)
