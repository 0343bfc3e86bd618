"""Reads single keys from a terminal."""

import os
import re
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Final, Self

__all__ = ["Keys"]

# What terminals send for keys without a character. After ESC comes "[" or, in application mode, "O".
_SEQUENCES: Final = {b"C": "right", b"D": "left", b"A": "up", b"B": "down"}
_KEY: Final = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[@-~]|[\xc0-\xff][\x80-\xbf]*|.", re.DOTALL)
_INCOMPLETE: Final = re.compile(rb"\x1b(\[[0-?]*[ -/]*|O)?")
# The rest of a sequence comes at once, but perhaps in another packet.
_REST_S: Final = 0.05
_AT_ONCE: Final = 1024


class Keys:
    """Reads keys as they are pressed, without echo. Restores the terminal at the end of the context.

    If the standard input is not a terminal, no key is ever pressed.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._former: list[object] | None = None
        # Keys that have been read and not returned yet.
        self._pending = b""

    def __enter__(self) -> Self:
        if os.isatty(self._input):
            self._former = termios.tcgetattr(self._input)
            # Ctrl-C still interrupts.
            tty.setcbreak(self._input, termios.TCSANOW)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._former is not None:
            termios.tcsetattr(self._input, termios.TCSANOW, self._former)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> str:
        """Return the name of the next key; an empty string if none is pressed in time, or if it has no name."""
        if not self._pending:
            self._read(max(0.0, seconds))
        if _INCOMPLETE.fullmatch(self._pending):
            self._read(_REST_S)
        found = _KEY.match(self._pending)
        if found is None:
            return ""
        self._pending = self._pending[found.end() :]
        pressed = found[0]
        if pressed == b"\t":
            return "right"
        if pressed.startswith(b"\x1b"):
            return _SEQUENCES.get(pressed[2:], "")
        # No other character has a meaning.
        return pressed.decode("ascii", errors="ignore")

    def _read(self, seconds: float) -> None:
        readable, _, _ = select.select([self._input] if self._former is not None else [], [], [], seconds)
        if readable:
            self._pending += os.read(self._input, _AT_ONCE)
