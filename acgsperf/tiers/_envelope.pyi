"""The surface of the compiled reader of envelopes; `envelope` has the same, in plain Python."""

from collections.abc import Iterable, Sequence
from typing import Final

from acgsperf.tiers.base import Entry

IMPLEMENTATION: Final = "c"

def unseal_many(
    blobs: Iterable[bytes | None], keys: Iterable[bytes], limit: int, now: float, /
) -> tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]], int]: ...
