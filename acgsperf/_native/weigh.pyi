"""The surface of the compiled weigher; `weigh_py` has the same, in plain Python."""

from typing import Final

IMPLEMENTATION: Final = "c"

def weigh_bytes(key: object, value: object, /) -> int: ...
