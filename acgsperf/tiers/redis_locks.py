"""Locks in Redis, for single flight between processes."""

import asyncio
import math
import secrets
import time
from typing import Final

from redis.exceptions import ResponseError

from acgsperf.tiers import records
from acgsperf.tiers.records import RecordKind
from acgsperf.tiers.redis_calls import RedisCalls, ScriptCall
from acgsperf.tiers.redis_keys import TOKEN_TTL_MS, RedisKeys
from acgsperf.tiers.redis_scripts import LOCK, UNLOCK
from acgsperf.tiers.server_calls import ServerCalls
from acgsperf.tiers.server_clock import ServerClock

__all__ = ["RedisLocks"]

# Redis refuses an expiry time beyond 64 bits.
_LONGEST_MS: Final = 1 << 60
_RELEASE_EVERY_S: Final = 0.5
_MAX_UNKNOWN: Final = 1_000


class RedisLocks:
    """Locks of a namespace.

    Args:
        calls: makes the calls, with a deadline.
        scripts: calls the scripts.
        keys: names the locks.
        clock: the server's.
        writer: names this cache in the records of released locks; empty for no records.

    Attributes:
        calls: makes the calls; in a cluster, those of the node that has the locks now.
        unknown: locks whose reply was lost, by owner: the key, and how long to try to release them.
    """

    def __init__(
        self, calls: ServerCalls, scripts: RedisCalls, keys: RedisKeys, clock: ServerClock, writer: bytes
    ) -> None:
        self.unknown: Final[dict[str, tuple[str, float]]] = {}
        self.calls: ServerCalls = calls
        self._scripts = scripts
        self._keys = keys
        self._clock = clock
        self._writer = writer
        self._releasing = False
        self._is_open = True

    def close(self) -> None:
        """Forget locks of unknown state. They end with their ttl."""
        self._is_open = False
        self.unknown.clear()

    async def lock(self, key: str, ttl: float) -> int | None:
        """See `LockingTier`."""
        owner = secrets.token_hex(8)
        lifetime_ms = max(1, math.ceil(ttl * 1000)) if ttl * 1000 < _LONGEST_MS else _LONGEST_MS
        call = self.lock_call(key, lifetime_ms, owner)
        token: int | None = None
        refused = False

        async def ask() -> int:
            nonlocal refused
            try:
                return int(await self._scripts.run_one(call))
            except ResponseError:
                refused = True
                raise

        try:
            token = await self.calls.run(ask)
            return token
        finally:
            if token is None and not refused and self._is_open and len(self.unknown) < _MAX_UNKNOWN:
                # The server may have granted the lock, or may still do so.
                self.unknown[owner] = key, time.monotonic() + 2 * lifetime_ms / 1000
                if not self._releasing:
                    self._releasing = True
                    self.calls.start(self._release_unknown())

    async def unlock(self, key: str, token: int, outcome: bytes = b"") -> bool:
        """See `LockingTier`."""
        call = self._unlock_call(key, token, outcome)
        return bool(await self.calls.run(lambda: self._scripts.run_one(call)))

    def lock_call(self, key: str, lifetime_ms: int, owner: str) -> ScriptCall:
        """Return the call that acquires a lock."""
        return ScriptCall(LOCK, [self._keys.lock(key), self._keys.fence], [lifetime_ms, owner, TOKEN_TTL_MS], 0)

    def _unlock_call(self, key: str, mine: int | str, outcome: bytes = b"") -> ScriptCall:
        released = [
            records.packed(record, self._writer, self._clock.now_us())
            for record in (records.of_keys(RecordKind.UNLOCKED, [(key, outcome)]) if self._writer else [])
            # A record cannot name a key that is too long, so it wakes nobody. The waiters ask again.
            if record.kind is RecordKind.UNLOCKED
        ]
        return ScriptCall(UNLOCK, [self._keys.lock(key), self._keys.log], [mine, len(released), *released], 0)

    async def _release_unknown(self) -> None:
        """Release locks that the server granted although the reply was lost, once it answers again."""
        try:
            while self.unknown:
                asked = list(self.unknown.items())
                if self.calls.allow(0):
                    calls = [self._unlock_call(key, owner) for owner, (key, _) in asked]
                    replies = await self.calls.run(lambda calls=calls: self._scripts.run(calls))  # type: ignore[misc]
                    for (owner, _), reply in zip(asked, replies or (), strict=False):
                        if reply == 1:
                            self.unknown.pop(owner, None)
                now = time.monotonic()
                for owner, (_, until) in asked:
                    if until < now:
                        self.unknown.pop(owner, None)
                await asyncio.sleep(_RELEASE_EVERY_S)
        finally:
            self._releasing = False
