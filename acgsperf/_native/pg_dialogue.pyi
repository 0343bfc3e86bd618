"""The surface of the compiled check of PostgreSQL's replies; `pg_dialogue_py` has the same, in plain Python."""

from typing import Final, final

from typing_extensions import Buffer

IMPLEMENTATION: Final = "c"

@final
class Dialogue:
    def sent(self, data: Buffer, /) -> None: ...
    def received(self, data: Buffer, /) -> str | None: ...
