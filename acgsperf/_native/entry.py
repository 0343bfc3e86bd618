"""An entry: what a tier keeps for a key, and how its value becomes bytes."""

from typing import Any, ClassVar, Protocol

from msgspec import Struct


class Packed(Struct, frozen=True, gc=False):
    """A value of a declared type as a tier has it. The codec of the caller opens it.

    Attributes:
        data: MessagePack.
    """

    data: bytes


class Codec(Protocol):
    """Packs values of a declared type, and opens what a tier returns."""

    def pack(self, value: Any, /) -> tuple[bytes, bool]:
        """Return a value as MessagePack, and whether only this codec gives back its type.

        If only this codec does, a tier returns it as `Packed`.

        Raises:
            UnstorableValueError: if it would come back as something else.
            Exception: if it has no form as MessagePack.
        """

    def opened(self, value: Any, /) -> Any:
        """Return the value from what a tier has returned: `Packed`, or a JSON-like value.

        Raises:
            Exception: if it is not of this type.
        """


class UnstorableValueError(TypeError):
    """A value would not come back from a tier as it was.

    Args:
        kind: its type, or that of a part of it.
        why: the reason, as the end of a sentence about it.
    """

    def __init__(self, kind: type, why: str) -> None:
        super().__init__(f"{kind.__qualname__} {why}")
        self.kind = kind
        self.why = why


class Entry(Struct, frozen=True):
    """What a tier keeps for a key. Times are those of `time.monotonic` in this process; None means never.

    A tier that other processes read must not store these times: it stores those of its server's clock, and converts
    them when it reads.

    `msgspec.structs.replace` returns a changed copy. It is a msgspec `Struct` because every read creates one, and a
    frozen dataclass takes eight times as long.

    Attributes:
        value: JSON-like, or bytes; in a `TypedEntry`, of the type that its codec packs.
        created_at: when the value was loaded or set.
        fresh_until: the time from which the entry is stale; None for never.
        kept_until: the time from which the tier no longer has it; None for never.
        tags: the tags by which `invalidate_tag` finds it.
        negative: whether the loader found no value.
        id: 8 random bytes, made by the write or load that made the entry; empty if no tier has it yet.
        stamp: microseconds. Of two writes, the one with the greater stamp is the newer.
        codec: None. The codec of a `TypedEntry` packs its value.
    """

    codec: ClassVar[Codec | None] = None

    value: Any
    created_at: float
    fresh_until: float | None
    kept_until: float | None
    tags: tuple[str, ...] = ()
    negative: bool = False
    id: bytes = b""
    stamp: int = 0


class TypedEntry(Entry, frozen=True):
    """An entry whose value has a declared type. It is a class of its own, because another field costs every read.

    Attributes:
        codec: packs the value.
    """

    codec: Codec | None = None  # type: ignore[misc]


def typed(entry: Entry, codec: Codec) -> TypedEntry:
    """Return an entry with a codec."""
    # By position: `replace` takes several times as long.
    return TypedEntry(
        *(entry.value, entry.created_at, entry.fresh_until, entry.kept_until, entry.tags, entry.negative, entry.id),
        *(entry.stamp, codec),
    )
