"""`acgsperf top`: the figures of a page of metrics, or of a fleet, in a terminal."""

import asyncio
import threading
import time
from typing import Final

from rich.console import Console
from rich.live import Live

from acgsperf import interrupts
from acgsperf.dashboard.fleet_source import FleetSource
from acgsperf.dashboard.page_source import PageSource
from acgsperf.dashboard.snapshot import Snapshot
from acgsperf.dashboard.terminal import Keys
from acgsperf.dashboard.top_view import FLEET_VIEW, Screen
from acgsperf.errors import AcgsperfError

__all__ = ["run_top"]

# How long a pressed key waits at most to be drawn.
_TURN_S: Final = 0.1


class _Reader:
    """Takes snapshots, each time in the same thread.

    Args:
        source: a page of metrics, or a fleet.
    """

    def __init__(self, source: PageSource | FleetSource) -> None:
        self._source = source
        self._runner = asyncio.Runner()

    def snapshot(self) -> Snapshot:
        """Wait for the next snapshot.

        Raises:
            AcgsperfError: if there are no figures.
        """
        if isinstance(self._source, PageSource):
            return self._source.compare(self._source.observe())
        return self._runner.run(self._source.snapshot())

    def close(self) -> None:
        """Close the connections."""
        if isinstance(self._source, FleetSource):
            self._runner.run(self._source.close())
            self._runner.close()


class _Fetcher:
    """Takes snapshots in a thread, so that keys work while the application does not answer.

    Args:
        reader: takes them.
        screen: shows the figures.
        interval: the seconds between two snapshots.
    """

    def __init__(self, reader: _Reader, screen: Screen, interval: float) -> None:
        self._reader, self._screen, self._interval = reader, screen, interval
        self._ended = threading.Event()
        # A daemon, because a page that does not come must not delay the end.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.changed = True

    def start(self) -> None:
        """Take snapshots from now on."""
        self._thread.start()

    def end(self) -> None:
        """Take no more."""
        self._ended.set()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            try:
                self._screen.show(self._reader.snapshot())
            except AcgsperfError as error:
                self._screen.fail(str(error))
            self.changed = True
            due = max(due + self._interval, time.monotonic())
            self._ended.wait(due - time.monotonic())
        self._reader.close()


def run_top(source: PageSource | FleetSource, interval: float, *, console: Console, once: bool = False) -> None:
    """Show the figures until `q` is pressed.

    Args:
        source: a page of metrics, or a fleet.
        interval: the seconds between two snapshots.
        console: the terminal.
        once: print the figures of one interval, and return.

    Raises:
        AcgsperfError: if `once` is True and there are no figures.
    """
    screen = Screen(FLEET_VIEW if isinstance(source, FleetSource) else 0)
    reader = _Reader(source)
    if once or not console.is_terminal:
        try:
            reader.snapshot()
            time.sleep(interval)
            screen.show(reader.snapshot())
        finally:
            reader.close()
        console.print(screen)
        return
    fetcher = _Fetcher(reader, screen, interval)
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
