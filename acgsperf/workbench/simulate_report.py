"""Prints and draws the results of `simulate`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from acgsperf.errors import AcgsperfError
from acgsperf.workbench.simulate import COLUMNS, PREDICTION, Result
from acgsperf.workbench.tables import Cell, print_table

__all__ = ["draw", "print_curves", "print_results"]

_NAMES = {"lru": "LRU", "s3fifo": "S3-FIFO", "adaptive": "Adaptive", "belady": "Belady"}
_TITLES = {
    column: _NAMES[column.removesuffix(PREDICTION)] + (" + prediction" if column.endswith(PREDICTION) else "")
    for column in COLUMNS
}
_BAR = 40


def print_results(console: Console, results: Sequence[Result]) -> None:
    """Print the hit ratios as a table, with a column for each policy."""
    names = [policy for policy in COLUMNS if any(result.policy == policy for result in results)]
    found = {(result.trace, result.size, result.policy): result for result in results}
    rows: list[list[Cell] | str] = []
    trace = None
    for name, size in dict.fromkeys((result.trace, result.size) for result in results):
        if name != trace:
            rows.append(name)
            trace = name
        rows.append([f"{size:,}", *(_cell(found[name, size, policy]) for policy in names)])
    titles = [_TITLES[name] for name in names]
    caption = (
        "In brackets: the lowest and the highest of all seeds." if any(len(r.hit_ratios) > 1 for r in results) else ""
    )
    if "belady" in names:
        caption += " Belady: the optimum of any cache that loads on demand."
    if any(result.wasted for result in results):
        caption += " After the /: useless fetches in percent of the requests."
    print_table(
        console,
        ("Entries", *titles),
        rows,
        title="Hit ratio in percent, by number of entries",
        caption=caption.strip(),
        right=("Entries", *titles),
    )


def _cell(result: Result) -> str:
    text = f"{100 * result.mean:.2f}"
    if result.wasted:
        text += f" / {100 * sum(result.wasted) / len(result.wasted):.1f}"
    if len(result.hit_ratios) > 1:
        text += f" [{100 * min(result.hit_ratios):.2f} {100 * max(result.hit_ratios):.2f}]"
    return text


def print_curves(console: Console, results: Sequence[Result]) -> None:
    """Print the miss ratio of each size and policy as a bar."""
    for trace in dict.fromkeys(result.trace for result in results):
        rows: list[list[Cell] | str] = []
        size = 0
        for result in results:
            if result.trace == trace:
                if result.size != size:
                    size = result.size
                    rows.append(f"{size:,} entries")
                miss = 1 - result.mean
                rows.append([_TITLES[result.policy], f"{100 * miss:.2f}", "#" * round(_BAR * miss)])
        print_table(console, ("Policy", "Misses", ""), rows, title=f"{trace}: miss ratio in percent", right=("Misses",))


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw the miss-ratio curves of each trace into a picture.

    Raises:
        ImportError: if matplotlib is not installed.
        AcgsperfError: if the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(result.trace for result in results))
    figure, axes = pyplot.subplots(1, len(traces), figsize=(1 + 5 * len(traces), 4), squeeze=False)
    for axis, trace in zip(axes[0], traces, strict=True):
        for policy in COLUMNS:
            points = [
                (result.size, 100 * (1 - result.mean))
                for result in results
                if (result.trace, result.policy) == (trace, policy)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=_TITLES[policy])
        axis.set(title=trace, xlabel="entries", ylabel="miss ratio in percent", xscale="log", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise AcgsperfError(f"--plot {path} cannot be written: {error}") from None
    finally:
        pyplot.close(figure)
