from collections.abc import Callable, Collection
from typing import Any, Final, final

from acgsperf._native.entry import Entry

IMPLEMENTATION: Final = "c"

@final
class ReadPath:
    enabled: bool
    def __init__(
        self,
        held: tuple[Collection[str], ...],
        start: Callable[[str], Any],
        promotion: object,
        clock: Callable[[], float],
    ) -> None: ...
    def begin(self, key: object, /) -> Any: ...
    def end(self, key: str, entry: Entry | None, /) -> bool: ...
