"""The commands `acgsperf dashboard` and `acgsperf top`."""

import os
import socket
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acgsperf.workbench.usage import UsageError, number, whole_number

if TYPE_CHECKING:
    from acgsperf.dashboard.fleet_source import FleetSource
    from acgsperf.dashboard.page_source import PageSource

__all__ = ["dashboard", "top"]

# What the URL of a fleet's server begins with.
_SERVERS: Final = ("redis", "unix:", "postgresql:", "postgres:")
# The hours of 90 days may be many.
_LEAST_FOR_HOURS_S: Final = 30.0
_Url = Annotated[str, typer.Argument(metavar="URL", hidden=True)]
_Namespace = Annotated[
    str, typer.Option(metavar="NAME", help="Prefix of the metrics' names, or namespace of the service's cache.")
]
_Timeout = Annotated[str, typer.Option(metavar="SECONDS", help="Deadline for the whole page, or for each query.")]
_Interval = Annotated[str, typer.Option(metavar="SECONDS", help="Time between two snapshots.")]


def dashboard(
    url: _Url,
    port: Annotated[str, typer.Option(metavar="N", help="Port of the dashboard; 0 for any free one.")] = "8765",
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    namespace: _Namespace = "acgsperf",
    timeout: _Timeout = "5",
    interval: _Interval = "1",
    trends: Annotated[
        str | None,
        typer.Option(metavar="URL", help="PostgreSQL in which the service keeps its hours. Default: DATABASE_URL."),
    ] = None,
) -> None:
    """Serve a live page with the figures of a running application, or of all instances of a service.

    URL is the application's page of metrics, for example http://localhost:8000/metrics. A page of metrics has no alerts
    and no hot keys: for these, mount acgsperf.dashboard.Dashboard in the application.

    Or URL is the Redis or the PostgreSQL in which the instances of a service leave their reports, as for acgsperf
    fleet.
    """
    number_of_port = whole_number("--port", port, 0, 65_535)
    seconds = number("--interval", interval, 0.1, 3600)
    source = _source(url, namespace, timeout, trends or os.environ.get("DATABASE_URL", "").strip())
    try:
        import uvicorn
    except ImportError:
        raise UsageError(
            "uvicorn is not installed, and the command needs it: pip install 'acgsperf[dashboard]'"
        ) from None
    from acgsperf.dashboard.app import Dashboard

    family, shown = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    # Bound here, because uvicorn would print a port in use as several lines.
    with socket.create_server((host, number_of_port), family=family) as listener:
        typer.echo(f"Dashboard: http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends it)")
        config = uvicorn.Config(Dashboard(source=source, interval=seconds), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def top(
    url: _Url,
    interval: _Interval = "1",
    namespace: _Namespace = "acgsperf",
    timeout: _Timeout = "5",
    once: Annotated[bool, typer.Option("--once", help="Print the figures of one interval, and end.")] = False,
) -> None:
    """Show the figures of a running application, or of all instances of a service, in this terminal.

    URL is the application's page of metrics, for example http://localhost:8000/metrics. Or it is the Redis or the
    PostgreSQL in which the instances leave their reports, as for acgsperf fleet.

    Keys: q quits, arrows and 1 to 7 switch the view, s sorts by the next column, r reverses the order, p pauses.
    """
    from rich.console import Console

    try:
        from acgsperf.dashboard.top import run_top
    except ModuleNotFoundError as error:
        raise UsageError(f"the command needs a system with the module {error.name}") from None
    seconds = number("--interval", interval, 0.1, 3600)
    run_top(_source(url, namespace, timeout), seconds, console=Console(), once=once)


def _source(url: str, namespace: str, timeout: str, trends: str = "") -> "PageSource | FleetSource":
    """Return the source that a URL names; that of a fleet with the hours in `trends`, unless it is empty.

    Raises:
        UsageError, ValueError: if the URL, the namespace or the timeout is not valid.
    """
    seconds = number("--timeout", timeout, 0.001, 3600)
    if url.startswith(_SERVERS):
        from acgsperf.dashboard.fleet_source import FleetSource
        from acgsperf.fleet.servers import store_of

        store, hours = store_of(url, namespace, timeout=seconds), None
        if trends:
            from acgsperf.trends.store import TrendStore

            hours = TrendStore(trends, namespace, timeout=max(seconds, _LEAST_FOR_HOURS_S))
        return FleetSource(store, trends=hours)
    from acgsperf.dashboard.page_source import PageSource
    from acgsperf.workbench.scrape import checked_url

    return PageSource(checked_url(url), namespace=namespace, timeout=seconds)
