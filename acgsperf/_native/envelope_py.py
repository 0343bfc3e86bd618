"""The reader of envelopes in pure Python: the twin of `envelope`."""

from collections.abc import Iterable, Sequence
from typing import Final

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
