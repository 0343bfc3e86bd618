"""Single flight between processes: one process loads a key, the others wait for its outcome."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, Self

from acgsperf.errors import LoadError
from acgsperf.tiers.base import LockingTier, Tier

__all__ = ["HeldLocks", "ProcessLock"]

_POLL_INTERVAL_S: Final = 0.02
# With a backplane, the release of a lock wakes those that wait for it. After this time they look again by themselves,
# in case the record is lost or late.
_WAKE_INTERVAL_S: Final = 0.25
_MAX_OUTCOME_CHARACTERS: Final = 200
# The outcomes that the waiting processes get: the value is in the tier; the tier has no value, and each process loads
# for itself; the load has failed, with the error after the mark.
_STORED: Final = b""
_NOTHING: Final = b"-"
_FAILED: Final = b"!"


class HeldLocks:
    """The locks of some keys that one load holds.

    Attributes:
        tokens: the fencing token of each key; 0 for a key that is loaded without a lock.
        unanswered: the keys for which the tier has not answered.
    """

    __slots__ = ("_expires_at", "tokens", "unanswered")

    def __init__(self, tokens: Mapping[str, int], unanswered: Collection[str], expires_at: float) -> None:
        self.tokens: Final = dict(tokens)
        self.unanswered: Final = unanswered
        self._expires_at = expires_at

    @property
    def expired(self) -> bool:
        """Whether another process may have acquired a lock since, and stored a newer value."""
        return any(self.tokens.values()) and asyncio.get_running_loop().time() >= self._expires_at


class ProcessLock:
    """A lock for each key, kept in a tier that all processes share.

    The locks save loads; correctness does not depend on them. If the tier does not answer, or a lock is not acquired
    within `ttl`, a process loads without it.

    Args:
        tier: keeps the locks.
        ttl: the seconds after which a lock expires, in case its process has died.

    Attributes:
        wakes: whether `released` is called when another process releases a lock.

    Raises:
        TypeError: if the tier cannot lock.
    """

    def __init__(self, tier: Tier | None, ttl: float) -> None:
        self.ttl: Final = ttl
        self.wakes = False
        # Resolved with the outcome of a load by another process.
        self._waiters: dict[str, set[asyncio.Future[bytes]]] = {}
        if not isinstance(tier, LockingTier):
            raise TypeError(f"lock_ttl needs an l2 with lock() and unlock(), got {tier!r}")
        self._tier: LockingTier = tier
        self._releases: set[asyncio.Future[Any]] = set()
        self._unlock: Callable[..., Awaitable[bool]] = tier.unlock
        # Whether the tier passes the outcome of a load to the processes that wait.
        self._passes_outcomes: bool = "outcome" in inspect.signature(tier.unlock).parameters

    @property
    def is_answering(self) -> bool:
        """Whether the last call of the tier has got an answer."""
        return not isinstance(self._tier, Tier) or self._tier.is_answering

    async def acquire(self, keys: Sequence[str], give_up_at: float) -> HeldLocks:
        """Try to acquire the locks of keys, and return those that were acquired.

        Args:
            keys: the keys.
            give_up_at: the event loop's time from which keys are loaded without a lock.
        """
        now = asyncio.get_running_loop().time()
        tokens = await asyncio.gather(*(self._tier.lock(key, self.ttl) for key in keys))
        return HeldLocks(
            {
                key: token or 0
                for key, token in zip(keys, tokens, strict=True)
                # None: the tier does not answer. 0: another process holds the lock.
                if token != 0 or now >= give_up_at
            },
            {key for key, token in zip(keys, tokens, strict=True) if token is None},
            now + self.ttl,
        )

    async def release(
        self, locks: HeldLocks, unshared: Collection[str] = (), error: BaseException | None = None
    ) -> None:
        """Release locks, and pass the outcome of the load to the processes that wait for them.

        If the tier does not answer, this continues in the background.

        Args:
            locks: the locks.
            unshared: the keys whose value the tier did not store.
            error: why the load has failed.
        """
        held = [(key, token) for key, token in locks.tokens.items() if token]
        locks.tokens.clear()
        failure = b""
        # A cancelled load says nothing about the next one.
        if isinstance(error, Exception):
            text = f"{type(error).__name__}: {error}"[:_MAX_OUTCOME_CHARACTERS]
            failure = _FAILED + text.encode(errors="replace")
        if self._passes_outcomes:
            outcomes = [failure or (_NOTHING if key in unshared else _STORED) for key, _ in held]
            calls = [self._unlock(*lock, outcome) for lock, outcome in zip(held, outcomes, strict=True)]
        else:
            calls = [self._unlock(*lock) for lock in held]
        if not calls:
            return
        released = asyncio.gather(*calls)
        if self.is_answering:
            await released
        else:
            self._releases.add(released)
            released.add_done_callback(self._released)

    def _released(self, release: asyncio.Future[Any]) -> None:
        self._releases.discard(release)
        if not release.cancelled():
            # Otherwise asyncio would log the error. A lock that was not released expires.
            release.exception()

    def waiting(self, keys: Sequence[str]) -> "Waiting":
        """Return a context in which the release of the lock of each key is noticed, from its beginning on."""
        return Waiting(self, keys)

    def released(self, key: str, outcome: bytes) -> None:
        """Wake the loads that wait for a lock that another process has released.

        Args:
            key: the key of the lock.
            outcome: the outcome of its load.
        """
        for waiter in self._waiters.get(key, ()):
            if not waiter.done():
                waiter.set_result(outcome)


class Waiting:
    """A wait for the locks of keys. It ends when one of them is released, and at the latest after an interval."""

    def __init__(self, lock: ProcessLock, keys: Sequence[str]) -> None:
        self._lock = lock
        self._futures: dict[str, asyncio.Future[bytes]] = {}
        self._keys = keys

    def __enter__(self) -> Self:
        for key in self._keys if self._lock.wakes else ():
            future = self._futures[key] = asyncio.get_running_loop().create_future()
            self._lock._waiters.setdefault(key, set()).add(future)
        return self

    def __exit__(self, *error: object) -> None:
        waiters = self._lock._waiters
        for key, future in self._futures.items():
            waiters[key].discard(future)
            if not waiters[key]:
                del waiters[key]

    async def wait(self, keys: Sequence[str], give_up_at: float) -> bool:
        """Wait until the lock of one of the keys is released, and return whether its process has stored no value.

        Raises:
            LoadError: if the load of another process has failed.
        """
        now = asyncio.get_running_loop().time()
        interval = _WAKE_INTERVAL_S if self._futures else _POLL_INTERVAL_S
        futures = {self._futures[key]: key for key in keys if key in self._futures}
        timeout = max(0.0, min(interval, give_up_at - now))
        if not futures:
            await asyncio.sleep(timeout)
            return False
        done, _ = await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        outcomes = {futures[future]: future.result() for future in done}
        for key, outcome in outcomes.items():
            if outcome.startswith(_FAILED):
                why = outcome.removeprefix(_FAILED).decode(errors="replace")
                raise LoadError(f"the load of {key!r} failed in another process: {why}")
        return _NOTHING in outcomes.values()
