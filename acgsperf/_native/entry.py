"""An entry: what a tier keeps for a key."""

from typing import Any

from msgspec import Struct


class Entry(Struct, frozen=True):
    """What a tier keeps for a key. Times are seconds since the epoch, for processes share them.

    A msgspec `Struct`, for a read makes one and a frozen dataclass takes eight times as long; `msgspec.structs.replace`
    makes a changed copy.

    Attributes:
        value: JSON-like, or bytes. A tuple comes back as a list.
        created_at: when the value was loaded or set.
        fresh_until: from then on the entry is stale; None for never.
        kept_until: from then on the tier has forgotten it; None for never.
        tags: what `invalidate_tag` finds it by.
        negative: the loader said that there is none.
    """

    value: Any
    created_at: float
    fresh_until: float | None
    kept_until: float | None
    tags: tuple[str, ...] = ()
    negative: bool = False
