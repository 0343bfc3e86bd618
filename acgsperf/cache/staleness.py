"""Decides whether an entry is fresh, due for refresh or stale, and for how long it may be served."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acgsperf.cache.arguments import checked_number, checked_ttl
from acgsperf.tiers.base import RETENTION_S, Entry
from acgsperf.tiers.ids import new_id

__all__ = ["Staleness", "aligned"]


def aligned(clock: Callable[[], float]) -> Callable[[], float]:
    """Return a clock that agrees with `time.monotonic` now, and runs as the given one does.

    The entries of server tiers have monotonic times. With a clock of another zero, their lifetimes would be wrong.
    """
    if clock is time.monotonic:
        return clock
    ahead = clock() - time.monotonic()
    return lambda: clock() - ahead


@dataclass(slots=True, kw_only=True)
class Staleness:
    """The time-related options of a cache, in seconds, and the decisions that follow from them.

    `TieredCache` documents each option. Only `refresh_ahead` may change later.
    """

    clock: Callable[[], float]
    ttl: float | None
    ttl_jitter: float
    stale_ttl: float
    soft_timeout: float | None
    hard_timeout: float | None
    refresh_ahead: float | None
    negative_ttl: float | None
    retry_after: float
    deadline: float
    lock_ttl: float | None

    def __post_init__(self) -> None:
        checked_ttl(self.ttl)
        for name in ("hard_timeout", "negative_ttl", "deadline", "lock_ttl"):
            if getattr(self, name) is not None:
                checked_number(name, getattr(self, name), "greater than 0", lambda seconds: seconds > 0)
        for name in ("stale_ttl", "soft_timeout", "retry_after"):
            if getattr(self, name) is not None:
                checked_number(name, getattr(self, name), "at least 0", lambda seconds: seconds >= 0)
        checked_number("ttl_jitter", self.ttl_jitter, "at least 0 and less than 1", lambda share: 0 <= share < 1)
        self.set_refresh_ahead(self.refresh_ahead)

    @property
    def lru_clock(self) -> Callable[[], float] | None:
        """The clock for an `LRUCache`: None for its own coarse clock, which is faster, unless the user gave one."""
        return None if self.clock is time.monotonic else self.clock

    @property
    def retention(self) -> float:
        """The seconds for which tiers remember what was removed. The value of a load that takes longer is not kept."""
        return max(RETENTION_S, 2 * (self.hard_timeout or 0))

    def set_refresh_ahead(self, share: float | None) -> None:
        """Change the refresh point. Entries that L1 already holds keep their old one."""
        if share is not None:
            checked_number("refresh_ahead", share, "greater than 0 and less than 1", lambda share: 0 < share < 1)
        self.refresh_ahead = share

    def entry(self, value: Any, ttl: float | None, tags: tuple[str, ...]) -> Entry:
        """Return an entry that is fresh from now on; the jitter shortens its ttl."""
        now = self.clock()
        lifetime = checked_ttl(ttl)
        if lifetime == math.inf:
            return Entry(value, now, None, None, tags, id=new_id())
        fresh_until = now + lifetime * (1 - self.ttl_jitter * random.random())
        kept_until = fresh_until + self.stale_ttl
        return Entry(value, now, fresh_until, None if kept_until == math.inf else kept_until, tags, id=new_id())

    def negative_entry(self, tags: tuple[str, ...]) -> Entry:
        """Return an entry that says that the key has no value, as of now."""
        now = self.clock()
        until = now + (self.negative_ttl or 0)
        return Entry(None, now, until, until, tags, negative=True, id=new_id())

    def is_fresh(self, entry: Entry) -> bool:
        """Whether any caller may get the entry."""
        return entry.fresh_until is None or self.clock() < entry.fresh_until

    def is_due_for_refresh(self, entry: Entry) -> bool:
        """Whether the key should be loaded again: its entry is stale, or past its refresh point."""
        return self.seconds_until_refresh(entry) <= 0

    def seconds_until_refresh(self, entry: Entry) -> float:
        """The seconds until the entry is due for refresh; 0 or negative if it is due."""
        if entry.fresh_until is None:
            return math.inf
        until = entry.fresh_until
        if self.refresh_ahead is not None and not entry.negative:
            until = entry.created_at + (until - entry.created_at) * self.refresh_ahead
        return until - self.clock()

    def seconds_until_removal(self, entry: Entry) -> float:
        """The seconds until the entry may not be served any more, not even stale; 0 or negative if that has passed."""
        until = entry.kept_until
        if self.stale_ttl == 0 and not entry.negative:
            # Without a stale_ttl, an entry that `expire_now` made stale must not be served.
            until = entry.fresh_until
        return math.inf if until is None else until - self.clock()
