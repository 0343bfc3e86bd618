"""Ctrl-C and SIGTERM without half-done work.

A handler that raises does so between any two bytecodes: after a server was started and before it was registered, or in
the middle of its clean-up. Two things avoid that. `Held` notes signals while servers start, run and stop, and raises
only where the code asks. `exit_now` is for the rest of a command, which has nothing to clean up.

The package imports this module before all others. If the process is the command `acgsperf`, it then handles signals
during the other imports. So this module imports next to nothing itself.
"""

from __future__ import annotations

import os
import sys

try:
    # The module `signal` adds enums to this one, and takes milliseconds to load them.
    import _signal as signal  # type: ignore[import-not-found]
except ImportError:
    import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Any, Self, TypeVar

    _T = TypeVar("_T")

# What the command prints when a signal ends it.
ENDINGS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SIGNALS = tuple(ENDINGS)


def exit_now(number: int, frame: FrameType | None) -> None:
    """Signal handler: ends the process at once, with one line and the usual exit status."""
    ignore()
    try:  # noqa: SIM105 - contextlib is not loaded yet
        os.write(2, f"acgsperf: {ENDINGS[number]}\n".encode())
    except OSError:
        pass
    os._exit(128 + number)


def install() -> None:
    """Let a signal end the process at once; one that the process was started to ignore is still ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, exit_now)


def ignore() -> None:
    """Ignore signals from now on: the work is done, and the process ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_command() -> bool:
    """Return whether this process is the command `acgsperf`, by its own name or as `python -m acgsperf`."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""  # noqa: PTH119 - pathlib loads slowly
    if name == "-m" and "-m" in sys.orig_argv:
        # The package of `python -m PACKAGE` is being imported.
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["acgsperf"]
    return name in {"acgsperf", "acgsperf.exe"}


def _is_main_thread() -> bool:
    try:
        import threading
    except ImportError:
        # The interpreter is shutting down, and has no modules any more.
        return False
    return threading.current_thread() is threading.main_thread()


class Held:
    """Notes SIGINT and SIGTERM in a `with` block, instead of raising an exception at once; `check` raises it.

    A second signal changes nothing, so a clean-up is not interrupted. A signal that no `check` has raised is handled at
    the end of the block, as without the block. Blocks may be nested: the outermost one decides. Only handlers written
    in Python are replaced. In threads other than the main one, where Python runs no handlers, the block does nothing.
    """

    _outermost: Held | None = None

    def __init__(self) -> None:
        self._former: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._noted = 0
        self._raised = False
        self._cancel: Callable[[], object] | None = None
        self._deciding = self

    def __enter__(self) -> Self:
        if not _is_main_thread():
            return self
        if Held._outermost is not None:
            self._deciding = Held._outermost
            return self
        for number in _SIGNALS:
            former = signal.getsignal(number)
            if callable(former):
                self._former[number] = former
                signal.signal(number, self._note)
        Held._outermost = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Held._outermost is not self:
            return
        Held._outermost = None
        for number, former in self._former.items():
            signal.signal(number, former)
        if self._noted and not self._raised and error is None:
            self._former[self._noted](self._noted, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._noted:
            self._noted = number
            if self._cancel is not None:
                self._cancel()

    def check(self) -> None:
        """Raise the exception for a noted signal: that of the former handler, or SystemExit instead of `exit_now`."""
        held = self._deciding
        if not held._noted or held._raised:
            return
        held._raised = True
        number = held._noted
        former = held._former[number]
        if former is not exit_now:
            former(number, None)
            # A handler that returns wants the program to continue.
            held._noted, held._raised = 0, False
        else:
            # Not KeyboardInterrupt: libraries for command lines have their own ideas about it.
            raise SystemExit(128 + number)

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """`asyncio.run`; a signal cancels the coroutine, once, and is raised when that has ended."""
        import asyncio

        held = self._deciding

        async def watched() -> _T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            held._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if held._noted:
                task.cancel()
            try:
                return await main
            finally:
                held._cancel = None

        try:
            return asyncio.run(watched())
        finally:
            self.check()


if is_command():
    try:  # noqa: SIM105 - contextlib is not loaded yet
        install()
    except ValueError:
        # Only the main thread may install handlers. Finding out which thread this is would load `threading` first.
        pass
