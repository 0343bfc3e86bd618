"""Compares entries without what a tier adds to them."""

from msgspec.structs import replace

from acgsperf.tiers import Entry


class _About(float):
    """A time that is equal to those within 10 ms."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) <= 0.01

    __hash__ = None  # type: ignore[assignment]


def bare(entry: Entry | None) -> Entry | None:
    """An entry without id and stamp, and its times as exact as two conversions between clocks are."""
    if entry is None:
        return None
    times = {
        name: None if (time := getattr(entry, name)) is None else _About(time)
        for name in ("created_at", "fresh_until", "kept_until")
    }
    return replace(entry, id=b"", stamp=0, **times)
