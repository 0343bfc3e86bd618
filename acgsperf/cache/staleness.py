"""Decides whether an entry is fresh, due for refresh or stale, and for how long it may be served."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from acgsperf._native.entry import Codec, typed
from acgsperf.cache.arguments import checked_number, checked_ttl
from acgsperf.cache.options import EntryOptions
from acgsperf.tiers.base import RETENTION_S, Entry, Tier
from acgsperf.tiers.ids import new_id
from acgsperf.tiers.server import ServerTier

__all__ = ["Staleness", "aligned"]


def aligned(clock: Callable[[], float], *tiers: Tier | None) -> Callable[[], float]:
    """Return a clock that runs as the given one does and, if one of the tiers has a server, shows `time.monotonic` now.

    The entries of server tiers have monotonic times. With a clock of another zero, their lifetimes would be wrong.
    """
    if clock is time.monotonic or not any(isinstance(tier, ServerTier) for tier in tiers):
        return clock
    ahead = clock() - time.monotonic()
    return lambda: clock() - ahead


@dataclass(slots=True, kw_only=True)
class Staleness:
    """The time-related options of a cache, in seconds, and the decisions that follow from them.

    `TieredCache` and `EntryOptions` document each option. `options` may change later. With a `clone`, entries get a
    copy of a value.
    """

    clock: Callable[[], float]
    options: EntryOptions
    retry_after: float
    deadline: float
    lock_ttl: float | None
    clone: Callable[[Any, Codec | None], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("deadline", "lock_ttl"):
            if getattr(self, name) is not None:
                checked_number(name, getattr(self, name), "greater than 0", lambda seconds: seconds > 0)
        checked_number("retry_after", self.retry_after, "at least 0", lambda seconds: seconds >= 0)

    @property
    def lru_clock(self) -> Callable[[], float] | None:
        """The clock for an `LRUCache`: None for its own coarse clock, which is faster, unless the user gave one."""
        return None if self.clock is time.monotonic else self.clock

    @property
    def retention(self) -> float:
        """The seconds for which tiers remember what was removed. The value of a load that takes longer is not kept."""
        return max(RETENTION_S, 2 * (self.options.hard_timeout or 0))

    def entry(
        self,
        value: Any,
        options: EntryOptions,
        tags: tuple[str, ...],
        codec: Codec | None = None,
    ) -> Entry:
        """Return an entry that is fresh from now on; the jitter shortens its ttl."""
        now = self.clock()
        if self.clone is not None:
            value = self.clone(value, codec)
        lifetime = checked_ttl(options.ttl)
        fresh_until = kept_until = None
        if lifetime != math.inf:
            fresh_until = now + lifetime * (1 - options.jitter * random.random())
            kept_until = None if options.stale_ttl == math.inf else fresh_until + options.stale_ttl
        entry = Entry(value, now, fresh_until, kept_until, tags, id=new_id())
        return entry if codec is None else typed(entry, codec)

    def negative_entry(self, options: EntryOptions, tags: tuple[str, ...]) -> Entry:
        """Return an entry that says that the key has no value, as of now."""
        now = self.clock()
        until = now + (options.negative_ttl or 0)
        return Entry(None, now, until, until, tags, negative=True, id=new_id())

    def is_fresh(self, entry: Entry) -> bool:
        """Whether any caller may get the entry."""
        return entry.fresh_until is None or self.clock() < entry.fresh_until

    def seconds_until_refresh(self, entry: Entry, refresh_ahead: float | None) -> float:
        """The seconds until the entry is due for refresh; 0 or negative if it is due.

        Args:
            entry: the entry.
            refresh_ahead: the share of its ttl after which it is due; None for all of it.
        """
        if entry.fresh_until is None:
            return math.inf
        until = entry.fresh_until
        if refresh_ahead is not None and not entry.negative:
            until = entry.created_at + (until - entry.created_at) * refresh_ahead
        return until - self.clock()

    def seconds_until_removal(self, entry: Entry) -> float:
        """The seconds until the entry may not be served any more, not even stale; 0 or negative if that has passed."""
        return math.inf if entry.kept_until is None else entry.kept_until - self.clock()
