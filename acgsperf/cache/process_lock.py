"""Single flight between processes: one process loads a key, the others wait for what it stores."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from acgsperf.tiers.base import Entry, LockingTier, Tier

__all__ = ["LockAttempt", "ProcessLock"]

_POLL_INTERVAL_S: Final = 0.02


@dataclass(slots=True)
class LockAttempt:
    """The outcome of an attempt to acquire the lock of a key.

    Attributes:
        entry: what another process has stored meanwhile; None if this process has to load the key.
        token: the fencing token of the lock, 0 without a lock.
        expires_at: when the lock expires, by the clock of the event loop.
    """

    entry: Entry | None = None
    token: int = 0
    expires_at: float = 0.0

    @property
    def lock_expired(self) -> bool:
        """Whether another process may have acquired the lock since, and stored a newer value."""
        return bool(self.token) and asyncio.get_running_loop().time() >= self.expires_at


class ProcessLock:
    """A lock for each key, kept in a tier that all processes share.

    The locks save loads; correctness does not depend on them. If the tier does not answer, or the lock is not acquired
    within `ttl`, a process loads without it.

    Args:
        tier: keeps the locks.
        ttl: the seconds after which a lock expires, in case its process has died.

    Raises:
        TypeError: if the tier cannot lock.
    """

    def __init__(self, tier: Tier | None, ttl: float) -> None:
        self._ttl = ttl
        if not isinstance(tier, LockingTier):
            raise TypeError(f"lock_ttl needs an l2 with lock() and unlock(), got {tier!r}")
        self._tier: LockingTier = tier

    @asynccontextmanager
    async def acquire(self, key: str, read: Callable[[str], Awaitable[Entry | None]]) -> AsyncIterator[LockAttempt]:
        """Acquire the lock of a key for the time of a load, or wait until `read` finds what its holder has stored."""
        attempt = LockAttempt()
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._ttl
        try:
            while True:
                expires_at = now() + self._ttl
                token = await self._tier.lock(key, self._ttl)
                if token:
                    attempt.token, attempt.expires_at = token, expires_at
                # The previous holder of the lock may have stored the value since the last read.
                attempt.entry = await read(key)
                if attempt.entry is not None or token != 0 or now() >= give_up_at:
                    break
                await asyncio.sleep(_POLL_INTERVAL_S)
            yield attempt
        finally:
            if attempt.token:
                await self._tier.unlock(key, attempt.token)
