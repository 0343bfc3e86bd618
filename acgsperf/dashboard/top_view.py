"""What `acgsperf top` draws: a snapshot as lines of text that fit the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from acgsperf.dashboard.snapshot import Snapshot
from acgsperf.printable import printable

__all__ = ["FLEET_VIEW", "VIEWS", "Screen"]

_LINES_OF_FRAME: Final = 7
_LINES_OF_TABLE_HEAD: Final = 3
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_HISTORY: Final = 30
_LONGEST_STATE: Final = 12
_HELP: Final = "q quit  ←/→ or 1-7 view  s sort  r reverse  p pause"
# For "not measured" a number that is sorted last.
_LEAST: Final = -1.0


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[Any], Any]
    write: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class _View:
    name: str
    rows: Callable[[Snapshot], Sequence[Any]]
    label: Callable[[Any], str]
    columns: tuple[_Column, ...]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.3g}s"
    return f"{value:.3g}ms" if value >= 1 else f"{value * 1000:.3g}µs"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _plain(value: object) -> str:
    return "-" if value is None else str(value)


def _of(title: str, field: str, write: Callable[[Any], str]) -> _Column:
    return _Column(title, lambda row: getattr(row, field), write)


def _tiers(snapshot: Snapshot) -> list[tuple[str, Any]]:
    return [(f"{cache.name} {tier.name.upper()}", tier) for cache in snapshot.caches for tier in cache.tiers]


def _of_tier(title: str, field: str, write: Callable[[Any], str]) -> _Column:
    return _Column(title, lambda row: getattr(row[1], field), write)


def _problems(row: Any) -> str:
    found = (*row.unhealthy, *row.alerts)
    if not found:
        return "ok"
    return (
        str(found[0])
        if len(found) == 1 and len(found[0]) <= _LONGEST_STATE
        else f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    )


VIEWS: Final = (
    _View(
        "Tiers",
        _tiers,
        lambda row: str(row[0]),
        (
            _of_tier("Look/s", "lookups", _number),
            _of_tier("Hits", "hit_rate", _percent),
            _of_tier("Total", "total_hit_rate", _percent),
            _of_tier("P99", "read_p99_ms", _ms),
            _of_tier("Circuit", "breaker", _plain),
            _of_tier("Err/s", "errors", _number),
        ),
    ),
    _View(
        "Caches",
        lambda snapshot: snapshot.caches,
        lambda row: str(row.name),
        (
            _of("Entries", "entries", _number),
            _of("Evict/s", "evictions", _number),
            _of("Loads/s", "loads", _number),
            _of("Fail/s", "load_errors", _number),
            _of("Joins/s", "joins", _number),
            _of("Stale/s", "stale", _number),
        ),
    ),
    _View(
        "Pools",
        lambda snapshot: snapshot.pools,
        lambda row: str(row.name),
        (
            _of("Used", "in_use", _number),
            _of("Open", "connections", _number),
            _of("Max", "max", _number),
            _of("Wait", "waiting", _number),
            _Column("Oldest", lambda row: row.oldest_wait_s, lambda seconds: _ms(seconds * 1000)),
            _of("Wait99", "wait_p99_ms", _ms),
            _of("Use99", "use_p99_ms", _ms),
            _of("Leaks", "leaks", _number),
        ),
    ),
    _View(
        "Routes",
        lambda snapshot: snapshot.routes,
        lambda row: str(row.name),
        (
            _of("Resp/s", "responses", _number),
            _of("Total", "total", _number),
            _of("P50", "p50_ms", _ms),
            _of("P99", "p99_ms", _ms),
        ),
    ),
    _View(
        "Backplane",
        lambda snapshot: [(cache.name, cache.backplane) for cache in snapshot.caches if cache.backplane],
        lambda row: str(row[0]),
        (
            _of_tier("State", "state", _plain),
            _of_tier("Appl/s", "applied", _number),
            _of_tier("Queued", "queued", _number),
            _of_tier("Gaps", "gaps", _number),
            _of_tier("Lag50", "lag_p50_ms", _ms),
            _of_tier("Lag99", "lag_p99_ms", _ms),
        ),
    ),
    _View(
        "Instances",
        lambda snapshot: snapshot.instances or (),
        lambda row: str(row.name),
        (
            _of("Req/s", "requests", _number),
            _of("Fail/s", "errors", _number),
            _of("Hits", "hit_rate", _percent),
            _of("P50", "p50_ms", _ms),
            _of("P99", "p99_ms", _ms),
            _of("Lag99", "lag_ms", _ms),
            _Column("State", _problems, str),
        ),
    ),
    _View(
        "Trials",
        lambda snapshot: snapshot.trials or (),
        lambda row: str(row.setting),
        (
            _of("From", "before", _number),
            _of("To", "value", _number),
            _of("Outcome", "outcome", _plain),
            _of("Latency", "change", lambda change: "-" if change is None else f"{100 * change:+.1f}%"),
            _of("p", "p", _number),
        ),
    ),
)
FLEET_VIEW: Final = next(at for at, view in enumerate(VIEWS) if view.name == "Instances")


class Screen:
    """The state of the screen: the view, how it is sorted, and the figures.

    Args:
        view: the number of the first view, from 0.

    Attributes:
        paused: whether new figures are ignored.
    """

    def __init__(self, view: int = 0) -> None:
        self.paused: bool = False
        self._view = view
        # By view: the column to sort by, None for the label; and whether the highest value is first.
        self._sorting: dict[int, tuple[int | None, bool]] = {}
        self._snapshot: Snapshot | None = None
        self._problem = ""
        self._requests: list[float] = []

    def show(self, snapshot: Snapshot) -> None:
        """Show new figures, unless the screen is paused."""
        if self.paused:
            return
        self._snapshot, self._problem = snapshot, printable("; ".join(snapshot.missing))
        if snapshot.point.requests is not None:
            self._requests = [*self._requests[1 - _HISTORY :], snapshot.point.requests]

    def fail(self, problem: str) -> None:
        """Show why there are no new figures."""
        # It may repeat what a hostile page or server has answered.
        self._problem = printable(problem)

    def press(self, key: str) -> bool:
        """Do what a key stands for, and return whether to go on."""
        columns = len(VIEWS[self._view].columns)
        sorted_by, highest_first = self._sorting.get(self._view, (0, True))
        if key in ("q", "Q"):
            return False
        if key in ("right", "left"):
            self._view = (self._view + (1 if key == "right" else -1)) % len(VIEWS)
        elif key.isdigit() and 1 <= int(key) <= len(VIEWS):
            self._view = int(key) - 1
        elif key == "s":
            following = 0 if sorted_by is None else sorted_by + 1
            self._sorting[self._view] = (None, False) if following == columns else (following, True)
        elif key == "r":
            self._sorting[self._view] = (sorted_by, not highest_first)
        elif key == "p":
            self.paused = not self.paused
        return True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        yield Group(*self._lines(options.max_width, height))

    def _lines(self, width: int, height: int) -> list[RenderableType]:
        tabs = Text(" ").join(
            Text(f" {number} {view.name} ", "reverse" if number == self._view + 1 else "dim")
            for number, view in enumerate(VIEWS, start=1)
        )
        if self._snapshot is None:
            return [Text(self._problem or "waiting for the first figures", "red" if self._problem else "dim")]
        head = self._head(self._snapshot)
        state = Text(self._problem, "bold red") if self._problem else Text("paused" if self.paused else "", "bold")
        table = self._table(self._snapshot, max(1, height - _LINES_OF_FRAME - _LINES_OF_TABLE_HEAD))
        for line in (*head, tabs, state):
            line.truncate(width, overflow="ellipsis")
        return [*head, tabs, table, state, Text(_HELP[:width], "dim")]

    def _head(self, snapshot: Snapshot) -> list[Text]:
        point = snapshot.point
        most = max(self._requests, default=0.0)
        bars = "".join(_BLOCKS[round((len(_BLOCKS) - 1) * value / most) if most else 0] for value in self._requests)
        processes = "1 process" if snapshot.processes == 1 else f"{snapshot.processes} processes"
        return [
            Text.assemble((f"{snapshot.name}", "bold"), f"  {processes}  {_number(snapshot.requests)} requests"),
            Text.assemble(
                f"{_number(point.requests)} req/s  ",
                (f"{_number(point.errors)} failed/s  ", "red" if point.errors else ""),
                (f"{_number(point.violations)} refused/s  ", "red" if point.violations else ""),
                (bars, "cyan"),
            ),
            Text(
                f"P50 {_ms(point.p50_ms)}  P95 {_ms(point.p95_ms)}  P99 {_ms(point.p99_ms)}  "
                f"hits {_percent(point.hit_rate)}  L1 {_percent(point.l1)}  L2 {_percent(point.l2)}  "
                f"L3 {_percent(point.l3)}"
            ),
        ]

    def _table(self, snapshot: Snapshot, most: int) -> Table:
        view = VIEWS[self._view]
        sorted_by, highest_first = self._sorting.get(self._view, (0, True))
        rows = sorted(view.rows(snapshot), key=lambda row: _order(view, row, sorted_by), reverse=highest_first)
        table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        arrow = "▼" if highest_first else "▲"
        table.add_column(f"Name{arrow if sorted_by is None else ''}", no_wrap=True, overflow="ellipsis", ratio=1)
        for at, column in enumerate(view.columns):
            title = f"{column.title}{arrow if at == sorted_by else ''}"
            table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
        for row in rows[:most]:
            cells = [Text(column.write(column.value(row))) for column in view.columns]
            table.add_row(Text(view.label(row)), *cells)
        if not rows:
            table.add_row(Text("none", "dim"), *[""] * len(view.columns))
        return table


def _order(view: _View, row: Any, sorted_by: int | None) -> tuple[float, str]:
    if sorted_by is None:
        return 0.0, view.label(row)
    value = view.columns[sorted_by].value(row)
    return (float(value), "") if isinstance(value, int | float) else (_LEAST, str(value or ""))
