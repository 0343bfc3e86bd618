"""Single flight between processes: one loads, the others look for what it has stored."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from acgsperf.tiers.base import Entry, LockingTier

__all__ = ["ProcessLock", "Turn"]

_LOOK_EVERY_S: Final = 0.02


@dataclass(slots=True)
class Turn:
    """What came of waiting for the lock of a key.

    Attributes:
        entry: what another process has stored meanwhile; None when this one is to load.
        token: the fencing token of the lock, 0 without one.
        until: when the lock expires, by the clock of the event loop.
    """

    entry: Entry | None = None
    token: int = 0
    until: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether another process may have taken the lock, and loaded what is newer."""
        return bool(self.token) and asyncio.get_running_loop().time() >= self.until


class ProcessLock:
    """The lock of each key, in a tier.

    It saves loads and is not needed for correctness: without an answer from the tier, and when the lock has not come
    within `ttl`, a process loads without it.

    Args:
        tier: keeps the locks.
        ttl: seconds after which a lock expires, should its process have died.
    """

    def __init__(self, tier: LockingTier, ttl: float) -> None:
        self._tier = tier
        self._ttl = ttl

    @asynccontextmanager
    async def turn(self, key: str, look: Callable[[str], Awaitable[Entry | None]]) -> AsyncIterator[Turn]:
        """The time of a load, begun when the lock is held, or `look` has found what its holder stored."""
        turn = Turn()
        now = asyncio.get_running_loop().time
        give_up = now() + self._ttl
        try:
            while True:
                until = now() + self._ttl
                token = await self._tier.lock(key, self._ttl)
                if token:
                    turn.token, turn.until = token, until
                # Whoever held the lock may have stored the value since it was looked for.
                turn.entry = await look(key)
                if turn.entry is not None or token != 0 or now() >= give_up:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
            yield turn
        finally:
            if turn.token:
                await self._tier.unlock(key, turn.token)
