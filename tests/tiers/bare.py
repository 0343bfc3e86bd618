"""Entries without what a tier adds to them."""

from msgspec.structs import replace

from acgsperf.tiers import Entry


def bare(entry: Entry | None) -> Entry | None:
    """An entry without id and stamp, and its times as exact as two conversions between clocks are."""
    if entry is None:
        return None
    times = {
        name: None if (time := getattr(entry, name)) is None else round(time, 2)
        for name in ("created_at", "fresh_until", "kept_until")
    }
    return replace(entry, id=b"", stamp=0, **times)
