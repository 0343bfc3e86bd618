"""`acgsperf top`: the figures of a page of metrics in a terminal."""

import threading
import time
from typing import Final

from rich.console import Console
from rich.live import Live

from acgsperf import interrupts
from acgsperf.dashboard.page_source import PageSource
from acgsperf.dashboard.terminal import Keys
from acgsperf.dashboard.top_view import Screen
from acgsperf.errors import AcgsperfError

__all__ = ["run_top"]

# How long a pressed key waits at most to be drawn.
_TURN_S: Final = 0.1


class _Fetcher:
    """Fetches the page in a thread, so that keys work while the application does not answer.

    Args:
        source: the page.
        screen: shows the figures.
        interval: the seconds between two snapshots.
    """

    def __init__(self, source: PageSource, screen: Screen, interval: float) -> None:
        self._source, self._screen, self._interval = source, screen, interval
        self._ended = threading.Event()
        # A daemon, because a page that does not come must not delay the end.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.changed = True

    def start(self) -> None:
        """Fetch the page from now on."""
        self._thread.start()

    def end(self) -> None:
        """Fetch it no more."""
        self._ended.set()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            try:
                self._screen.show(self._source.compare(self._source.observe()))
            except AcgsperfError as error:
                self._screen.fail(str(error))
            self.changed = True
            due = max(due + self._interval, time.monotonic())
            self._ended.wait(due - time.monotonic())


def run_top(source: PageSource, interval: float, *, console: Console, once: bool = False) -> None:
    """Show the figures until `q` is pressed.

    Args:
        source: the page.
        interval: the seconds between two snapshots.
        console: the terminal.
        once: print the figures of one interval, and return.

    Raises:
        ScrapeError: if `once` is True and the page cannot be read.
    """
    screen = Screen()
    if once or not console.is_terminal:
        source.compare(source.observe())
        time.sleep(interval)
        screen.show(source.compare(source.observe()))
        console.print(screen)
        return
    fetcher = _Fetcher(source, screen, interval)
    # A signal must not end the process before the terminal is as it was.
    with (
        interrupts.Held() as signals,
        Keys() as keys,
        Live(screen, console=console, screen=True, auto_refresh=False) as live,
    ):
        fetcher.start()
        try:
            going_on = True
            while going_on:
                signals.check()
                key = keys.wait(_TURN_S)
                if key:
                    going_on = screen.press(key)
                if key or fetcher.changed:
                    fetcher.changed = False
                    live.refresh()
        finally:
            fetcher.end()
