"""The reader of envelopes, and the check of values, in pure Python: the twin of `envelope`."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.msgpack import Ext

from acgsperf._native.entry import Entry
from acgsperf._native.envelope_format import CorruptEnvelopeError, unseal

IMPLEMENTATION: Final = "python"


def unseal_many(
    blobs: Iterable[bytes | None],
    keys: Iterable[bytes],
    limit: int,
    now: float,
    offset: float,
    token: bytes | None,
    /,
) -> tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]], int]:
    """Return the entries in the envelopes that a server has returned for keys."""
    found: list[Entry | None] = []
    tagged: list[tuple[int, Sequence[bytes]]] = []
    corrupt = 0
    for at, (blob, key) in enumerate(zip(blobs, keys, strict=True)):
        entry = None
        if blob is not None:
            try:
                entry, tokens = unseal(blob, key, limit, now, offset, token)
            except CorruptEnvelopeError:
                corrupt += 1
            else:
                if tokens:
                    tagged.append((at, tokens))
        found.append(entry)
    return found, tagged, corrupt


_ATOMS: Final = frozenset({str, int, float, bool, type(None), bytes, Ext})


def changed_type(value: Any, /) -> type | None:
    """Return a type in a packed value that MessagePack does not give back; None if the value comes back as it was."""
    level = [value]
    while level:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind in _ATOMS:
                continue
            if kind is dict:
                # Another thread may change it meanwhile.
                for name, inner in item.copy().items():
                    if type(name) not in _ATOMS and (changed := _changed_in_key(name)) is not None:
                        return changed
                    below.append(inner)
            elif kind is list:
                below.extend(item)
            elif kind is not datetime or item.tzinfo is not UTC:
                return kind
        level = below
    return None


def _changed_in_key(name: Any) -> type | None:
    """Return a type in the key of a dict that does not come back. Unlike elsewhere, a tuple does."""
    kind = type(name)
    if kind is tuple:
        return next((changed for item in name if (changed := _changed_in_key(item)) is not None), None)
    if kind in _ATOMS or (kind is datetime and name.tzinfo is UTC):
        return None
    return kind
