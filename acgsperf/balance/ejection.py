"""When an endpoint that fails gets no more requests, and when one request tries it again."""

from typing import Final

__all__ = ["BAD_IN_A_ROW", "Ejection"]

# Bad responses in a row after which an endpoint is ejected.
BAD_IN_A_ROW: Final = 5
# An ejected endpoint gets a probe after this time; after each bad probe it waits twice as long.
FIRST_EJECTION_S: Final = 1.0
LAST_EJECTION_S: Final = 30.0


class Ejection:
    """Counts the bad responses of an endpoint, and ejects it after 5 in a row.

    Attributes:
        until: the time of the next probe; None if the endpoint is not ejected.
        count: how often it was ejected.
    """

    __slots__ = ("_bad_in_a_row", "_next_s", "count", "until")

    def __init__(self) -> None:
        self.until: float | None = None
        self.count: int = 0
        self._bad_in_a_row = 0
        self._next_s = FIRST_EJECTION_S

    def is_due(self, now: float) -> bool:
        """Return whether the endpoint is ejected, and due for a probe."""
        return self.until is not None and self.until <= now

    def note_good(self) -> bool:
        """Note a good response. Return whether it ended an ejection."""
        self._bad_in_a_row = 0
        if self.until is None:
            return False
        self.until = None
        self._next_s = FIRST_EJECTION_S
        return True

    def note_bad(self) -> bool:
        """Note a bad response. Return whether the endpoint should be ejected, or ejected for longer."""
        self._bad_in_a_row += 1
        return self.until is not None or self._bad_in_a_row >= BAD_IN_A_ROW

    def begin(self, now: float) -> float:
        """Send no more requests, except a probe after some time. Return that time, in seconds."""
        if self.until is None:
            self.count += 1
        lasts_s, self._next_s = self._next_s, min(2 * self._next_s, LAST_EJECTION_S)
        self.until = now + lasts_s
        return lasts_s
