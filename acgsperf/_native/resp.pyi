"""The surface of the compiled part of RESP2; `resp_py` has the same, in plain Python."""

from typing import Final

IMPLEMENTATION: Final = "c"

def mget(addresses: list[bytes], prefix: bytes, last: bytes, longest: int, /) -> bytes | None: ...
def has_long_array(data: bytes, /) -> bool: ...
