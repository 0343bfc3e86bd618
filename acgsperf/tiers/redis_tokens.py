"""Tokens of tags, as a read compares them."""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from acgsperf._native.envelope_format import TOKEN_BYTES
from acgsperf.tiers.base import Entry

__all__ = ["drop_invalidated"]

_STALE_END = 2 * TOKEN_BYTES


def drop_invalidated(
    found: list[Entry | None],
    tagged: Sequence[tuple[int, Sequence[bytes]]],
    current: Mapping[str, bytes | None],
    offset: float,
) -> None:
    """Replace entries with None if a tag has another token now, and make those stale whose tag was expired.

    Args:
        found: entries.
        tagged: for each entry that has tags: its position, and the tokens of its tags when it was stored.
        current: what is stored for each tag: 8 bytes, then possibly the time in microseconds before which entries are
            stale, then possibly one byte that says that the slower tier has refused an invalidation.
        offset: the server's clock minus the monotonic clock.
    """
    for position, tokens in tagged:
        entry = found[position]
        if entry is None:
            continue
        for tag, token in zip(entry.tags, tokens, strict=True):
            value = current[tag]
            if value is None or value[:TOKEN_BYTES] != token:
                found[position] = None
                break
            if len(value) >= _STALE_END:
                stale_at = int.from_bytes(value[TOKEN_BYTES:_STALE_END], "big") / 1e6 - offset
                if entry.created_at < stale_at and (entry.fresh_until is None or entry.fresh_until > stale_at):
                    entry = found[position] = replace(entry, fresh_until=stale_at)
