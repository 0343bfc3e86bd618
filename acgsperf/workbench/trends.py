"""The command `acgsperf trends`: says what became slower, and since when."""

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from acgsperf import interrupts
from acgsperf.printable import printable
from acgsperf.workbench.command import allow_broken_pipe
from acgsperf.workbench.tables import Cell, print_table
from acgsperf.workbench.usage import UsageError, counted, number

if TYPE_CHECKING:
    from acgsperf.trends import Change, Period, Trends

__all__ = ["print_trends", "trends"]

_FIGURES: Final = ("p50", "p95", "p99")
_COLUMNS: Final = ("Requests", "Hits", "Failed", "P50 ms", "Change", "P95 ms", "Change", "P99 ms", "Change")


def trends(
    url: Annotated[str | None, typer.Argument(metavar="URL", hidden=True)] = None,
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Namespace of the service's cache.")] = "acgsperf",
    days: Annotated[str, typer.Option(metavar="N", help="Changes that are older are not listed.")] = "14",
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Deadline for reading the hours.")] = "30",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what became slower in a service, and since when; compare its weeks and versions.

    URL is the PostgreSQL in which the service keeps its hours. Default: DATABASE_URL.

    The exit status is 1 if something became slower, and still is.
    """
    since_days = number("--days", days, 0.01, 90)
    seconds = number("--timeout", timeout, 0.001, 3600)
    server = url or os.environ.get("DATABASE_URL", "").strip()
    if not server:
        raise UsageError("the argument URL is missing, and DATABASE_URL is not set (--help shows what is possible)")
    with interrupts.Held() as signals:
        found = signals.run(_read(server, namespace, seconds))
    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_trends(Console(), found, since_days)
    raise typer.Exit(bool(found.slower(since_days)))


async def _read(url: str, namespace: str, timeout: float) -> "Trends":  # noqa: ASYNC109
    from acgsperf.trends import trends_of
    from acgsperf.trends.store import TrendStore

    async with TrendStore(url, namespace, timeout=timeout) as store:
        return trends_of(await store.history())


def print_trends(console: Console, found: "Trends", days: float) -> None:
    """Print the changes of the last days, the weeks and the versions."""
    listed = [change for change in found.changes if change.since >= found.end - days * 86_400]
    for change in listed:
        console.print(Text(printable(str(change)), _style(change)))
    if not listed and found.hours:
        console.print(f"nothing became slower or faster in the last {days:g} days", highlight=False)
    _print_periods(console, "Week of", found.weeks, "Each week, compared with the week before")
    named = [period for period in found.versions if period.version or len(found.versions) > 1]
    _print_periods(console, "Version", named, "Each version, compared with the four weeks before it")
    end = f", until {_time(found.end)} UTC" if found.hours else ""
    console.print(Text(f"{counted(found.hours, 'hour')} with requests{end}", "dim"))
    for problem in found.missing:
        console.print(Text(printable(problem), "dim"))


def _style(change: "Change") -> str:
    return "dim" if not change.lasts else "bold red" if change.is_slower else "green"


def _print_periods(console: Console, name: str, periods: "Iterable[Period]", title: str) -> None:
    rows = [[_name(period, name), *_cells(period)] for period in periods]
    if rows:
        print_table(console, (name, *_COLUMNS), rows, title=title, right=_COLUMNS)


def _name(period: "Period", name: str) -> str:
    return _time(period.start)[:10] if name == "Week of" else period.version or "unknown"


def _cells(period: "Period") -> Iterator[Cell]:
    yield f"{period.requests:,}"
    yield "-" if period.hit_rate is None else f"{period.hit_rate:.2%}"
    yield f"{period.failed / period.requests:.2%}" if period.requests else "-"
    for figure in _FIGURES:
        value = getattr(period, f"{figure}_ms")
        yield "-" if value is None else f"{value:.3f}"
        comparison = period.comparisons.get(figure)
        if comparison is None:
            yield "-"
        elif period.is_significant(figure):
            yield f"{comparison.change:+.1%}", "bold red" if comparison.change > 0 else "green"
        else:
            yield f"({comparison.change:+.1%})", "dim"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
