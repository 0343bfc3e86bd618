"""Prints the report of a replay as a table."""

from typing import Any

from rich.console import Console

from acgsperf.workbench.replay import Report
from acgsperf.workbench.tables import Cell, print_table
from acgsperf.workbench.usage import counted

__all__ = ["print_report"]


def print_report(console: Console, report: Report, source: dict[str, Any] | None) -> None:
    """Print what was achieved beside the targets.

    Args:
        console: where to print.
        report: the report.
        source: the name, format and lines of the trace; None for synthetic requests.
    """
    title = counted(report.requests, "request")
    if report.processes > 1:
        title += f" of {report.processes} processes"
    if report.refused:
        number = "all" if report.refused == report.requests else f"{report.refused:,} of them"
        title += f", {number} refused by the compliance gate,"
    title += f" in {report.seconds:.2f} s, {report.loads:,} read from PostgreSQL"
    if report.writes:
        title += f", {counted(report.writes, 'write')}"
        if report.unacknowledged:
            title += f" of which {report.unacknowledged:,} not acknowledged everywhere"
    if source is not None:
        title += f", format {source['format']}"
        if source["skipped"]:
            title += f", {source['skipped']:,} of {counted(source['lines'], 'line')} skipped"
    columns = ["Achieved"] if report.processes == 1 else [f"Process {at}" for at in range(1, report.processes + 1)]
    rows: list[list[Cell]] = []
    for row, *others in report.by_metric():
        met = [entry.met for entry in (row, *others)]
        status: Cell = ("missed", "bold red") if False in met else "met" if True in met else ""
        rows.append([row.metric, row.target, row.achieved, *(other.achieved for other in others), status])
    caption = ""
    if report.writes:
        caption = (
            "An answer is outdated if the value was changed before the request began: in the same process at any time "
            "before, in another process more than 1 s before."
        )
    print_table(console, ("Metric", "Target", *columns, "Status"), rows, title=title, caption=caption)
