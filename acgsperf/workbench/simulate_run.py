"""Reads a trace and simulates it, with a progress bar."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from acgsperf.workbench.simulate import DEFAULT_SIZES, Result, Simulation, dense, sizes
from acgsperf.workbench.trace_formats import TraceFormat
from acgsperf.workbench.traces import Trace

__all__ = ["simulated"]


def simulated(
    path: str,
    trace_format: str | None,
    count: int | None,
    wanted_sizes: str | None,
    policies: Sequence[str],
    seeds: int,
    prediction: bool,
) -> list[Result]:
    """Return the results of one trace.

    Args:
        path: the file; - for the standard input.
        trace_format: its format; None to recognize it.
        count: the most requests; None for all.
        wanted_sizes: as `sizes` parses them; None for the default.
        policies, seeds, prediction: as for `Simulation`.
    """
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(f"reading {path}", total=None)
        with Trace(path, None if trace_format is None else TraceFormat(trace_format)) as trace:
            keys = dense(trace.head(count))
        entries = sizes(wanted_sizes or DEFAULT_SIZES, len(set(keys)))
        name = trace.name if path == "-" else Path(path).name
        run = Simulation(name, keys, entries, policies, seeds, prediction)
        progress.update(bar, description=f"simulating {name}", total=run.steps)
        return run.run(lambda done: progress.advance(bar, done))
