"""The surface of the compiled reader of envelopes and check of values; `envelope_py` has the same, in plain Python."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from acgsperf._native.entry import Entry

IMPLEMENTATION: Final = "c"

def unseal_many(
    blobs: Iterable[bytes | None],
    keys: Iterable[bytes],
    limit: int,
    now: float,
    offset: float,
    token: bytes | None,
    /,
) -> tuple[list[Entry | None], list[tuple[int, Sequence[bytes]]], int]: ...
def changed_type(value: Any, /) -> type | None: ...
