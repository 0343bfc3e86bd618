"""A backplane on a Redis server: a stream for each namespace."""

import asyncio
from collections.abc import Sequence
from typing import Final

from acgsperf.backplane.base import TIMEOUT_S
from acgsperf.backplane.receiver import Receiver
from acgsperf.backplane.redis_reader import RedisReader
from acgsperf.backplane.server import ServerBackplane
from acgsperf.tiers.base import Tier
from acgsperf.tiers.records import Record, packed
from acgsperf.tiers.redis import RedisTier
from acgsperf.tiers.redis_connections import Credentials, RedisConnections
from acgsperf.tiers.redis_keys import RedisKeys
from acgsperf.timeouts import time_limit

__all__ = ["RedisBackplane"]

# For publishing, and for joining while the reader waits.
_CONNECTIONS: Final = 2

# One reader for each event loop and server. Only the thread of an event loop uses its readers.
_readers: Final[dict[tuple[asyncio.AbstractEventLoop, object], RedisReader]] = {}


class RedisBackplane(ServerBackplane):
    """Carries records of writes between processes over a stream in Redis.

    All caches of an event loop share one connection to a server. The stream of a namespace keeps about 10,000 records.
    A process that was disconnected for longer than that verifies its L1. Records that do not parse are counted and
    skipped.

    Args:
        url: as for `RedisTier`. It should be the server of L2: then a write and its record are one
            step. In a cluster, the log of a namespace is on one node, and records are published after their writes.
        timeout: the seconds after which a process that gets no records notices it; L1 does not answer then.
        credentials: called for each new connection; returns, or awaits, a password, or a user name and a password.

    Raises:
        ValueError: if the URL is not valid. The message does not repeat it, because it may contain a password.
    """

    name = "redis"

    def __init__(self, url: str, *, timeout: float = TIMEOUT_S, credentials: Credentials | None = None) -> None:
        self._set_up(RedisConnections(url, credentials=credentials), timeout)

    def _set_up(self, connections: RedisConnections, timeout: float) -> None:
        super().__init__(timeout)
        self._connections = connections
        self._reader: RedisReader | None = None
        self._key = b""

    @classmethod
    def beside(cls, tier: RedisTier, *, timeout: float = TIMEOUT_S) -> "RedisBackplane":
        """Return a backplane on the server of a tier."""
        backplane = cls.__new__(cls)
        backplane._set_up(tier.connections, timeout)
        return backplane

    def __repr__(self) -> str:
        return f"RedisBackplane({self._connections.where!r})"

    @property
    def position(self) -> bytes:
        reader, position = self._reader, super().position
        return reader.run + position if reader is not None and reader.run and position else b""

    def shares_server_with(self, tier: Tier) -> bool:
        # In a cluster, most keys are in other slots than the log.
        return (
            isinstance(tier, RedisTier)
            and tier.connections.identity == self._connections.identity
            and not self._connections.in_cluster
        )

    async def _join(self, receiver: Receiver) -> None:
        self._key = RedisKeys(receiver.namespace).log
        place = self._place()
        reader = _readers.get(place)
        if reader is None:
            reader = _readers[place] = RedisReader(self._connections.clone(_CONNECTIONS, self._key))
        self._reader = reader
        await reader.join(self._key, receiver)

    def _place(self) -> tuple[asyncio.AbstractEventLoop, object]:
        """Return what a reader is for. In a cluster, each log may be on another node."""
        key = self._key if self._connections.in_cluster else b""
        return asyncio.get_running_loop(), (self._connections.identity, key)

    async def _leave(self, receiver: Receiver) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        place = self._place()
        if reader.is_only(self._key, receiver):
            # Before the reader is closed, so that a cache that opens meanwhile gets a new one.
            _readers.pop(place, None)
        await reader.leave(self._key, receiver)

    async def _publish(self, records: Sequence[Record]) -> int:
        reader = self._reader
        assert reader is not None
        async with time_limit(self.timeout):
            blobs = [packed(record, record.writer, record.sent_us) for record in records]
            return await reader.publish(self._key, blobs)

    def _now_us(self) -> int:
        assert self._reader is not None
        return self._reader.clock.now_us()
