"""Reads single keys from a terminal."""

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Final, Self

__all__ = ["Keys"]

# What terminals send for keys without a character.
_SEQUENCES: Final = {b"\x1b[C": "right", b"\x1b[D": "left", b"\x1b[A": "up", b"\x1b[B": "down", b"\t": "right"}


class Keys:
    """Reads keys as they are pressed, without echo. Restores the terminal at the end of the context.

    If the standard input is not a terminal, no key is ever pressed.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._former: list[object] | None = None

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
        """Return the name of the next key; an empty string if none is pressed in time."""
        readable, _, _ = select.select([self._input] if self._former is not None else [], [], [], max(0.0, seconds))
        if not readable:
            return ""
        pressed = os.read(self._input, 8)
        return _SEQUENCES.get(pressed, pressed[:1].decode(errors="ignore"))
