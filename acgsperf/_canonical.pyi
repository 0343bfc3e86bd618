"""The surface of the compiled encoder; `_canonical_py` has the same, in plain Python."""

from typing import Final

IMPLEMENTATION: Final = "c"

def canonical(request: object, /) -> bytes: ...
def fingerprint(request: object, /) -> str: ...
