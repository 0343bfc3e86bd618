"""An entry: what a tier keeps for a key."""

from typing import Any

from msgspec import Struct


class Entry(Struct, frozen=True):
    """What a tier keeps for a key. Times are those of `time.monotonic` in this process; None means never.

    A tier that other processes read must not store these times: it stores those of its server's clock, and converts
    them when it reads.

    `msgspec.structs.replace` returns a changed copy. It is a msgspec `Struct` because every read creates one, and a
    frozen dataclass takes eight times as long.

    Attributes:
        value: JSON-like, or bytes. A tuple comes back as a list.
        created_at: when the value was loaded or set.
        fresh_until: the time from which the entry is stale; None for never.
        kept_until: the time from which the tier no longer has it; None for never.
        tags: the tags by which `invalidate_tag` finds it.
        negative: whether the loader found no value.
        id: 8 random bytes, made by the write or load that made the entry; empty if no tier has it yet.
        stamp: microseconds. Of two writes, the one with the greater stamp is the newer.
    """

    value: Any
    created_at: float
    fresh_until: float | None
    kept_until: float | None
    tags: tuple[str, ...] = ()
    negative: bool = False
    id: bytes = b""
    stamp: int = 0
