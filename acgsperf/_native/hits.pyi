"""The surface of the compiled search for hits; `hits_py` has the same, in plain Python."""

from collections.abc import Callable, Mapping
from typing import Any, Final, final

IMPLEMENTATION: Final = "c"

@final
class HitFinder:
    hits: int
    def __init__(
        self,
        read: frozenset[bytes],
        targets: Mapping[tuple[Any, ...], Any],
        get_local: Callable[[str], Any],
        ticks: Callable[[], float],
        prepare: Callable[[Any], tuple[Any, ...] | None],
    ) -> None: ...
    def find(self, scope: Mapping[str, Any], /) -> Any: ...
