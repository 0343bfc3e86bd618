"""How long an entry is fresh, stale and kept, and what a load may cost those who wait for it."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from acgsperf._native.arguments import checked_ttl_ns
from acgsperf.tiers.base import Entry

__all__ = ["Staleness"]


@dataclass(slots=True, kw_only=True)
class Staleness:
    """The times of a cache, all in seconds; `TieredCache` says what each means. Only `refresh_ahead` may be changed."""

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
                _checked(name, getattr(self, name), "positive", lambda seconds: seconds > 0)
        for name in ("stale_ttl", "soft_timeout", "retry_after"):
            if getattr(self, name) is not None:
                _checked(name, getattr(self, name), "at least 0", lambda seconds: seconds >= 0)
        _checked("ttl_jitter", self.ttl_jitter, "at least 0 and below 1", lambda share: 0 <= share < 1)
        self.set_refresh_ahead(self.refresh_ahead)

    def set_refresh_ahead(self, share: float | None) -> None:
        """Change the refresh point, for entries from now on and for those behind L1."""
        if share is not None:
            _checked("refresh_ahead", share, "between 0 and 1", lambda share: 0 < share < 1)
        self.refresh_ahead = share

    def entry(self, value: Any, ttl: float | None, tags: tuple[str, ...]) -> Entry:
        """A value of this moment; its ttl is shortened by the jitter."""
        now = self.clock()
        lifetime = checked_ttl(ttl)
        if lifetime == math.inf:
            return Entry(value, now, None, None, tags)
        fresh_until = now + lifetime * (1 - self.ttl_jitter * random.random())
        kept_until = fresh_until + self.stale_ttl
        return Entry(value, now, fresh_until, None if kept_until == math.inf else kept_until, tags)

    def negative(self) -> Entry:
        """That there is none, as of this moment."""
        now = self.clock()
        until = now + (self.negative_ttl or 0)
        return Entry(None, now, until, until, negative=True)

    def is_fresh(self, entry: Entry) -> bool:
        """Whether an entry may be given to anyone."""
        return entry.fresh_until is None or self.clock() < entry.fresh_until

    def is_due(self, entry: Entry) -> bool:
        """Whether an entry is to be loaded again: it is stale, or has passed its refresh point."""
        return self.until_due(entry) <= 0

    def until_due(self, entry: Entry) -> float:
        """Seconds until an entry is to be loaded again; negative when it is."""
        if entry.fresh_until is None:
            return math.inf
        until = entry.fresh_until
        if self.refresh_ahead is not None and not entry.negative:
            until = entry.created_at + (until - entry.created_at) * self.refresh_ahead
        return until - self.clock()

    def until_stale(self, entry: Entry) -> float:
        """Seconds for which an entry is fresh; negative when it is not."""
        return math.inf if entry.fresh_until is None else entry.fresh_until - self.clock()

    def until_dropped(self, entry: Entry) -> float:
        """Seconds for which an entry is of any use; negative when it is of none."""
        return math.inf if entry.kept_until is None else entry.kept_until - self.clock()


def checked_ttl(ttl: float | None) -> float:
    """A time to live; infinity for None."""
    return math.inf if ttl is None or checked_ttl_ns(ttl) is None else float(ttl)


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags: text that has bytes."""
    own_tags = (tags,) if isinstance(tags, str) else tuple(tags)
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in own_tags):
        raise TypeError(f"tags must be a sequence of str, not {tags!r:.100}")
    for tag in own_tags:
        try:
            tag.encode()
        except UnicodeEncodeError:
            raise ValueError(f"tags must be text without lone surrogates, not {tag!r:.100}") from None
    return own_tags


def _checked(name: str, value: Any, bound: str, holds: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not holds(value):
        raise ValueError(f"{name} must be {bound}, not {value!r}")
    return value
