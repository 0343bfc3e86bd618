"""Lists the instances of a service, from the reports that they leave in a server."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console

from acgsperf.fleet import FleetSummary, Instance, store_of
from acgsperf.fleet.summary import summarize
from acgsperf.workbench.tables import Cell, print_table
from acgsperf.workbench.usage import counted

__all__ = ["print_fleet", "summary_of"]

_COLUMNS: Final = ("Instance", "Runs", "Report", "Requests", "Hits", "P50 ms", "P99 ms", "State", "Tuning", "Version")
_RIGHT: Final = ("Runs", "Report", "Requests", "Hits", "P50 ms", "P99 ms")
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))


async def summary_of(url: str, namespace: str, timeout: float) -> FleetSummary:  # noqa: ASYNC109
    """Read the reports of the instances.

    Args:
        url: the Redis or the PostgreSQL of the service.
        namespace: that of its cache.
        timeout: seconds for everything.

    Raises:
        FleetError: if the server cannot be reached.
        ValueError: if the URL or the namespace is not valid.
    """
    async with store_of(url, namespace, timeout=timeout) as store:
        return await summarize(await store.found())


def print_fleet(console: Console, fleet: FleetSummary) -> None:
    """Print a row for each instance, and one for all together."""
    tuned = any(one.revision or one.arm for one in fleet.instances)
    versions = len({one.version for one in fleet.instances}) > 1
    wanted = [name for name in _COLUMNS if (name != "Tuning" or tuned) and (name != "Version" or versions)]
    rows = [_row(one) for one in fleet.instances]
    if len(rows) > 1:
        latency = fleet.latency
        rows.append(
            {
                "Instance": "all",
                "Requests": f"{fleet.requests:,}",
                "Hits": f"{fleet.hit_rate:.2%}",
                "P50 ms": f"{latency.p50 / 1e6:.3f}" if latency.count else "-",
                "P99 ms": f"{latency.p99 / 1e6:.3f}" if latency.count else "-",
            }
        )
    print_table(
        console,
        wanted,
        [[row.get(name, "") for name in wanted] for row in rows],
        title=counted(len(fleet.instances), "instance"),
        caption="; ".join(fleet.missing),
        right=_RIGHT,
    )


def _row(one: Instance) -> Mapping[str, Cell]:
    problems = ", ".join((*one.unhealthy, *one.alerts))
    return {
        "Instance": one.name or one.instance,
        "Runs": _duration(one.seconds),
        "Report": f"{_duration(one.age_s)} ago",
        "Requests": f"{one.requests:,}",
        "Hits": f"{one.hit_rate:.2%}" if one.requests else "-",
        "P50 ms": f"{one.latency.p50 / 1e6:.3f}" if one.latency.count else "-",
        "P99 ms": f"{one.latency.p99 / 1e6:.3f}" if one.latency.count else "-",
        "State": (problems, "bold red") if one.unhealthy else (problems, "yellow") if problems else ("ok", "green"),
        "Tuning": f"{one.revision} {one.arm}".strip() if one.revision or one.arm else "",
        "Version": one.version,
    }


def _duration(seconds: float) -> str:
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
