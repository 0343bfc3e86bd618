"""The command line. Exit status: 0 done, 1 a target was missed, 2 bad input, 130 and 143 interrupted."""

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

from acgsperf.errors import AcgsperfError

try:
    import prometheus_client as _prometheus_client  # noqa: F401
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress
    from rich.table import Table
except ImportError as missing:
    print(f"acgsperf: {missing.name} is not installed: pip install 'acgsperf[cli]'", file=sys.stderr)
    raise SystemExit(2) from None

from acgsperf.dispatch import HashValidator
from acgsperf.validator import ComplianceValidator
from acgsperf.workbench import compare as comparison
from acgsperf.workbench import scrape
from acgsperf.workbench.doctor import Finding, Severity, examine
from acgsperf.workbench.embedded import embedded_servers
from acgsperf.workbench.replay import Report
from acgsperf.workbench.replay import replay as run_replay
from acgsperf.workbench.traces import Request, TraceFormat, read_trace, zipf_trace

app = typer.Typer(pretty_exceptions_enable=False)
# What is wrong with options and arguments; its module is another in each version of typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_COLOURS = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


def _print_version(wanted: bool) -> None:
    if wanted:
        _let_readers_leave()
        typer.echo(f"acgsperf {version('acgsperf')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """A compliance gate, a cache and latency histograms: tried out and measured on this machine."""


@app.command()
def replay(
    trace: Annotated[Path | None, typer.Argument(help="A trace file; without one, a synthetic workload.")] = None,
    trace_format: Annotated[
        TraceFormat | None, typer.Option("--format", help="How it is written; told from its content without.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests at most; 200,000 of a synthetic load.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=10_000, help="Requests in flight.")] = 4,
    l1_size: Annotated[int, typer.Option(min=1, max=2**30, help="Entries of the cache.")] = 100_000,
    ttl: Annotated[float, typer.Option(min=0.001, help="Seconds until a cached value expires.")] = 3600.0,
    tiers: Annotated[str, typer.Option(help="Of the cache: l1, l1,l2 or l1,l3 or all three.")] = "l1,l2,l3",
    warm: Annotated[bool, typer.Option("--warm", help="Answer all once before the clock starts.")] = False,
    seed: Annotated[int, typer.Option(help="Of the synthetic workload.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer every request of TRACE from the cache or a real PostgreSQL, and compare with the targets.

    The servers are private ones for the time of the run, unless REDIS_URL and DATABASE_URL name others.
    """
    wanted = set(tiers.lower().split(","))
    if not {"l1"} <= wanted <= {"l1", "l2", "l3"}:
        raise typer.BadParameter(f"l1, and l2 or l3 or both with commas, not {tiers!r}", param_hint="'--tiers'")
    if trace is None and trace_format is not None:
        raise typer.BadParameter("says how a TRACE is written, and there is none", param_hint="'--format'")
    load = zipf_trace(requests or 200_000, seed=seed) if trace is None else read_trace(trace, trace_format)[:requests]
    report = _replay(load, concurrency, l1_size, ttl, wanted, warm)
    _let_readers_leave()
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report)
    raise typer.Exit(0 if report.met else 1)


def _replay(load: list[Request], concurrency: int, l1_size: int, ttl: float, tiers: set[str], warm: bool) -> Report:
    console = Console(stderr=True)
    with (
        embedded_servers(redis="l2" in tiers) as servers,
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        assert servers.database_url is not None
        bar = progress.add_task("replaying", total=len(load))
        return asyncio.run(
            run_replay(
                load,
                servers.database_url,
                concurrency=concurrency,
                l1_size=l1_size,
                ttl=ttl,
                redis_url=servers.redis_url,
                l3="l3" in tiers,
                warm=warm,
                advanced=lambda done: progress.advance(bar, done),
            )
        )


def _print_report(report: Report) -> None:
    title = f"{report.requests:,} requests in {report.seconds:.2f} s, {report.loads:,} read from PostgreSQL"
    table = Table("Metric", "Target", "Achieved", "Status", title=title)
    for row in report.rows:
        status = "" if row.met is None else "met" if row.met else "[bold red]missed[/]"
        table.add_row(row.metric, row.target, row.achieved, status)
    Console().print(table)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option(help="Fewer repetitions: for a look, not for quoting.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option(help="Print the page of bench/RESULTS.md.")] = False,
) -> None:
    """Compare with dict, and with the libraries that one would take instead, side by side."""
    results = comparison.compare(quick=quick)
    _let_readers_leave()
    if as_json:
        typer.echo(json.dumps(results.as_dict(), indent=2))
    elif markdown:
        typer.echo(results.as_markdown())
    else:
        results.print(Console())


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look for what would keep a service from working here: extension, settings, servers, versions, clocks.

    A line each; exit status 1 when something does not work. A server that the environment does not name is a private
    one for the time of the examination.
    """
    findings = asyncio.run(_examined())
    _let_readers_leave()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for finding in findings:
            colour = _COLOURS[finding.severity]
            console.print(f"[{colour}]{finding.severity:7}[/]", f"{finding.subject:10}", escape(finding.detail))
    raise typer.Exit(any(finding.severity is Severity.ERROR for finding in findings))


async def _examined() -> list[Finding]:
    return [finding async for finding in examine(os.environ)]


@app.command()
def validate(
    hashes: Annotated[list[str], typer.Argument(metavar="HASH...", help="What a client has sent.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say of each HASH whether a service here would accept it; exit status 1 when one is not.

    CONSTITUTIONAL_HASH names the accepted ones, with commas.
    """
    gate = HashValidator(ComplianceValidator.from_environment().expected)
    verdicts = [gate.classify(found) for found in hashes]
    pairs = list(zip(hashes, verdicts, strict=True))
    _let_readers_leave()
    if as_json:
        typer.echo(json.dumps([{"hash": found, "verdict": verdict.name.lower()} for found, verdict in pairs], indent=2))
    else:
        for found, verdict in pairs:
            typer.echo(f"{verdict.name.lower():9} {found!r:.100}")
    raise typer.Exit(not all(verdicts))


@app.command()
def stats(
    url: Annotated[str, typer.Argument(help="Its page of metrics, such as http://localhost:8000/metrics.")],
    namespace: Annotated[str, typer.Option(help="What the names of its metrics begin with.")] = "acgsperf",
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds to wait.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a running service says of itself."""
    found = scrape.figures(scrape.fetch(url, timeout), namespace)
    _let_readers_leave()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    table = Table("Metric", "Value")
    table.add_row("Requests", f"{found.requests:,}")
    table.add_row("Errors and violations", f"{found.errors:,} and {found.violations:,}")
    table.add_row("Error rate", shown(found.error_rate, ".2%"))
    for name, value in (("P50", found.p50_ms), ("P95", found.p95_ms), ("P99", found.p99_ms)):
        table.add_row(f"{name}, estimated from buckets", f"{shown(value, '.3f')} ms")
    for tier, rate in found.hit_rates.items():
        table.add_row(f"Hit rate of {escape(tier.upper())}", f"{rate:.2%}")
    for name, pool in found.pools.items():
        row = "{in_use} of {connections} in use, {max} at most, {waiting} waiting".format(**pool)
        table.add_row(f"Pool {escape(name)}", row)
    Console().print(table)


def _let_readers_leave() -> None:
    """End silently, as other commands do, when `head` has seen enough; nothing is left to clean up by now."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def main() -> NoReturn:
    """Run the command line; every failure is one line and an exit status."""
    # What the package logs of a failure, the command says itself.
    logging.getLogger("acgsperf").addHandler(logging.NullHandler())
    # The servers' clean-up runs on the way out of the `with` blocks, for SIGTERM too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    status = 0
    if "--help" in sys.argv:
        _let_readers_leave()
    try:
        # Left to itself typer prints errors as boxes of several lines.
        status = app(standalone_mode=False) or 0
    except _UsageError as error:
        status = _complain(f"{error.format_message()} (--help tells more)", 2)  # type: ignore[attr-defined]
    except (AcgsperfError, OSError, ValueError, TypeError) as error:
        status = _complain(error, 2)
    except KeyboardInterrupt:
        status = 130
    if status == 130:
        _complain("interrupted", status)
    sys.exit(status)


def _complain(what: object, status: int) -> int:
    print("acgsperf:", " ".join(str(what).split()), file=sys.stderr)
    return status
