"""The command line.

Exit status: 0 done, 1 a target was missed or the answer is no, 2 bad input, 130 and 143 after a signal.
"""

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

from acgsperf import interrupts
from acgsperf._native.types import Policy
from acgsperf.errors import AcgsperfError

try:
    import prometheus_client as _prometheus_client  # noqa: F401
    import typer
    from rich.console import Console
    from rich.progress import Progress
except ImportError as _missing:
    print(
        f"acgsperf: {_missing.name} is not installed, and the command needs the extra cli: "
        "pip install 'acgsperf[cli]', or pip install -e '.[cli,embedded]' in a clone",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

from acgsperf.dashboard.commands import dashboard, top
from acgsperf.printable import printable
from acgsperf.workbench.command import Command, allow_broken_pipe
from acgsperf.workbench.tables import print_table
from acgsperf.workbench.trace_formats import TraceFormat
from acgsperf.workbench.trends import trends
from acgsperf.workbench.usage import UsageError, choice, explained, number, subset, whole_number

if TYPE_CHECKING:
    from acgsperf.workbench.doctor import Finding
    from acgsperf.workbench.replay import Load, Report

# Help as plain text: it is readable at every width, and in a pipe.
app: typer.Typer = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # By default, the help is never narrower than 50 columns.
    context_settings={"terminal_width": min(100, shutil.get_terminal_size().columns) - 1},
)
# The class of all usage errors. Its module differs between versions of typer.
_TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]


_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# A longer list of requests would take hours to prepare, and gigabytes.
_MAX_REQUESTS = 100_000_000
_SYNTHETIC_REQUESTS = 200_000
_MAX_PROCESSES = 16


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        allow_broken_pipe()
        typer.echo(f"acgsperf {version('acgsperf')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure and check acgsperf on this machine.

    Replay your own traffic, compare the speed with other libraries, and check that a service can run here.
    """


@app.command(cls=Command, short_help="Replay a trace.")
def replay(
    trace: Annotated[str | None, typer.Argument(metavar="TRACE", hidden=True)] = None,
    trace_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help=f"{', '.join(TraceFormat)}. Default: recognized from the content."
        ),
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"At most N requests. Default: the whole trace, or {_SYNTHETIC_REQUESTS:,}."),
    ] = None,
    processes: Annotated[str, typer.Option(metavar="N", help="Processes that send the requests.")] = "1",
    writes: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the keys that change meanwhile. Default: 0, or with several processes 0.01.",
        ),
    ] = None,
    concurrency: Annotated[str, typer.Option(metavar="N", help="Requests in flight in each process.")] = "4",
    rate: Annotated[
        str | None,
        typer.Option(metavar="N", help="Requests a second in each process. Default: no limit."),
    ] = None,
    l1_size: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Entries that L1 holds. Default: 100000, or with several processes a tenth of the keys.",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="Eviction policy of L1: adaptive, s3fifo or lru.")
    ] = "adaptive",
    prediction: Annotated[
        bool, typer.Option("--prediction", help="Fetch keys before they are requested, if their order is known.")
    ] = False,
    ttl: Annotated[str, typer.Option(metavar="SECONDS", help="Time until a cached value expires.")] = "3600",
    tiers: Annotated[str, typer.Option(metavar="NAMES", help="l1, or l1 with l2, l3 or both.")] = "l1,l2,l3",
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Use a private Redis Cluster of three primaries as L2.")
    ] = False,
    warm: Annotated[bool, typer.Option("--warm", help="Send all requests once before the clock starts.")] = False,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of the synthetic workload. Default: 1.")] = None,
    as_json: _Json = False,
) -> None:
    """Send every request of TRACE through a service, and compare its speed with the targets.

    TRACE is a file, or - for the standard input. Without TRACE, the requests are synthetic.

    With several processes, the first one fills the tiers, and then each sends every request while some values change.

    The service uses a private Redis and PostgreSQL, or those that REDIS_URL and DATABASE_URL name. The exit status is 1
    if a target was missed.
    """
    count = None if requests is None else whole_number("--requests", requests, 1, _MAX_REQUESTS)
    arguments = {
        "concurrency": whole_number("--concurrency", concurrency, 1, 10_000),
        "rate": None if rate is None else whole_number("--rate", rate, 1, 1_000_000),
        "l1_size": None if l1_size is None else whole_number("--l1-size", l1_size, 1, 2**30),
        "policy": choice("--policy", policy, get_args(Policy)),
        "prediction": prediction,
        "ttl": number("--ttl", ttl, 0.001, 1e9),
        "warm": warm,
        "processes": whole_number("--processes", processes, 1, _MAX_PROCESSES),
        "writes": None if writes is None else number("--writes", writes, 0, 1),
    }
    used = subset("--tiers", tiers, "l1", ("l2", "l3"))
    if cluster and "l2" not in used:
        raise UsageError(f"--cluster needs --tiers with l2, got {tiers!r}")
    if cluster and os.environ.get("REDIS_URL"):
        raise UsageError("--cluster starts a private cluster, and cannot be used with REDIS_URL")
    if used == {"l1"} and arguments["processes"] != 1:
        raise UsageError(f"--processes {processes} needs --tiers with l2 or l3, got {tiers!r}")
    if trace is None and trace_format is not None:
        raise UsageError(f"--format {trace_format} needs a TRACE argument")
    if trace is not None and seed is not None:
        raise UsageError(f"--seed {seed} is for the synthetic workload, and cannot be used with the trace {trace}")
    if trace is None:
        source = None
        load = _synthetic(count or _SYNTHETIC_REQUESTS, whole_number("--seed", seed or "1", -(2**63), 2**63 - 1))
    else:
        load, source = _recorded(trace, trace_format and choice("--format", trace_format, TraceFormat), count)
    report = _replay(load, used, arguments, cluster=cluster)
    from acgsperf.workbench.replay_table import print_report

    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps(report.as_dict() | ({"trace": source} if source else {}), indent=2))
    else:
        print_report(Console(), report, source)
    raise typer.Exit(0 if report.met else 1)


def _synthetic(count: int, seed: int) -> "Load":
    from acgsperf.workbench.replay import Load
    from acgsperf.workbench.traces import zipf_requests

    return Load.of(zipf_requests(count, seed=seed))


def _recorded(path: str, trace_format: str | None, count: int | None) -> "tuple[Load, dict[str, Any]]":
    """Return the load, and a description of its source."""
    from acgsperf.workbench.replay import Load
    from acgsperf.workbench.traces import Trace

    with Trace(path, None if trace_format is None else TraceFormat(trace_format)) as trace:
        load = Load.of(trace.head(count))
        return load, {
            "name": trace.name,
            "format": trace.format.value,
            "lines": trace.lines,
            "skipped": trace.skipped,
        }


def _replay(load: "Load", tiers: frozenset[str], arguments: dict[str, Any], *, cluster: bool) -> "Report":
    from acgsperf.workbench.embedded import embedded_servers
    from acgsperf.workbench.replay import replay as run_replay

    console = Console(stderr=True)
    with (
        interrupts.Held() as signals,
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        bar = progress.add_task("starting the servers", total=None)
        with embedded_servers(redis="l2" in tiers, cluster=cluster) as servers:
            assert servers.database_url is not None
            passes = 2 if arguments["warm"] or arguments["processes"] > 1 else 1
            progress.update(bar, description="replaying", total=passes * len(load.requests))
            return signals.run(
                run_replay(
                    load,
                    servers.database_url,
                    redis_url=servers.redis_url,
                    l3="l3" in tiers,
                    private_redis=not cluster and not os.environ.get("REDIS_URL"),
                    advanced=lambda done: progress.advance(bar, done),
                    **arguments,
                )
            )


@app.command(cls=Command, short_help="Try sizes and policies.")
def simulate(
    traces: Annotated[list[str], typer.Argument(metavar="TRACE", hidden=True)],
    trace_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help=f"{', '.join(TraceFormat)}. Default: recognized from the content."
        ),
    ] = None,
    requests: Annotated[
        str | None, typer.Option(metavar="N", help="At most N requests of each trace. Default: all of them.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Numbers of entries such as 500,2k, or shares of the keys such as 5%. Default: 1%,2%,5%,10%,20%.",
        ),
    ] = None,
    policies: Annotated[
        str, typer.Option(metavar="LIST", help="Some of lru, s3fifo, adaptive and belady.")
    ] = "lru,s3fifo,adaptive,belady",
    prediction: Annotated[
        bool, typer.Option("--prediction", help="Run each policy but belady once more with prediction.")
    ] = False,
    seeds: Annotated[str, typer.Option(metavar="N", help="Random samples of keys to try with each size.")] = "1",
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the miss-ratio curves. Without matplotlib, print them.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Print the hit ratios of each TRACE in caches of several sizes and policies.

    TRACE is a file, or - for the standard input. Every entry has the same size, and none expires.
    """
    from acgsperf.workbench.simulate import policies as known_policies
    from acgsperf.workbench.simulate_report import draw, print_curves, print_results
    from acgsperf.workbench.simulate_run import simulated

    count = None if requests is None else whole_number("--requests", requests, 1, _MAX_REQUESTS)
    wanted = trace_format and choice("--format", trace_format, TraceFormat)
    options = (known_policies(policies), whole_number("--seeds", seeds, 1, 1_000), prediction)
    results = [found for trace in traces for found in simulated(trace, wanted, count, sizes, *options)]
    allow_broken_pipe()
    console = Console()
    if as_json:
        typer.echo(json.dumps([found.as_dict() for found in results], indent=2))
    else:
        print_results(console, results)
    if plot is not None:
        try:
            draw(results, Path(plot))
        except ImportError:
            print_curves(Console(stderr=as_json), results)


@app.command(cls=Command, short_help="Compare with other libraries.")
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions. Do not quote the figures.")] = False,
    as_json: _Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page bench/RESULTS.md.")] = False,
) -> None:
    """Compare the speed of the compiled core with dict and with other libraries."""
    from acgsperf.workbench.compare import compare

    if as_json and markdown:
        raise UsageError("--json and --markdown cannot be used together")
    results = compare(quick=quick)
    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps(results.as_dict(), indent=2))
    elif markdown:
        typer.echo(results.as_markdown())
    else:
        results.print(Console())


@app.command(cls=Command, short_help="Check this machine.")
def doctor(as_json: _Json = False) -> None:
    """Check that a service can run here: extension, settings, servers, versions, clocks.

    The exit status is 1 if something does not work. A private Redis or PostgreSQL is started where REDIS_URL or
    DATABASE_URL is not set.
    """
    with interrupts.Held() as signals:
        findings = signals.run(_findings())
    allow_broken_pipe()
    from acgsperf.workbench.doctor import Severity, as_dicts, print_findings

    if as_json:
        typer.echo(json.dumps(as_dicts(findings), indent=2))
    else:
        print_findings(findings)
    raise typer.Exit(any(finding.severity is Severity.ERROR for finding in findings))


async def _findings() -> "list[Finding]":
    from acgsperf.workbench.doctor import examine

    return [finding async for finding in examine(os.environ)]


@app.command(cls=Command, short_help="Check hashes.")
def validate(
    hashes: Annotated[list[str], typer.Argument(metavar="HASH", hidden=True)],
    as_json: _Json = False,
) -> None:
    """Print whether a service here accepts each HASH, as a client sends it.

    The exit status is 1 if it does not accept one.

    CONSTITUTIONAL_HASH names the accepted hashes, separated by commas.
    """
    from acgsperf.dispatch import HashValidator
    from acgsperf.validator import ComplianceValidator

    gate = HashValidator(ComplianceValidator.from_environment().expected)
    verdicts = [gate.classify(found) for found in hashes]
    pairs = list(zip(hashes, verdicts, strict=True))
    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps([{"hash": found, "verdict": verdict.name.lower()} for found, verdict in pairs], indent=2))
    else:
        for found, verdict in pairs:
            typer.echo(f"{verdict.name.lower():9} {found!r:.100}")
    raise typer.Exit(not all(verdicts))


@app.command(cls=Command, short_help="Read a running application.")
def stats(
    url: Annotated[str, typer.Argument(metavar="URL", hidden=True)],
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Prefix of the metrics' names.")] = "acgsperf",
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Deadline for the whole page.")] = "5",
    as_json: _Json = False,
) -> None:
    """Print requests, latencies, hit rates, pools and routes of a running application.

    URL is its page of metrics, for example http://localhost:8000/metrics.
    """
    from acgsperf.workbench import scrape

    seconds = number("--timeout", timeout, 0.001, 3600)
    began = time.monotonic()
    page = scrape.fetch(url, seconds)
    found = scrape.figures(page, namespace, timeout=seconds - (time.monotonic() - began))
    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_table(Console(), ("Metric", "Value"), found.rows())


@app.command(cls=Command, short_help="List the instances of a service.")
def fleet(
    url: Annotated[str, typer.Argument(metavar="URL", hidden=True)],
    namespace: Annotated[str, typer.Option(metavar="NAME", help="Namespace of the service's cache.")] = "acgsperf",
    timeout: Annotated[str, typer.Option(metavar="SECONDS", help="Deadline for reading the reports.")] = "5",
    as_json: _Json = False,
) -> None:
    """List the instances of a service, and their requests, hits and latencies together.

    URL is the Redis in which they leave their reports or, without a Redis, the PostgreSQL.

    The exit status is 1 if there is no instance.
    """
    from acgsperf.workbench.fleet import print_fleet, summary_of

    with interrupts.Held() as signals:
        found = signals.run(summary_of(url, namespace, number("--timeout", timeout, 0.001, 3600)))
    allow_broken_pipe()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_fleet(Console(), found)
    raise typer.Exit(not found.instances)


app.command(cls=Command, short_help="Say what became slower, and since when.")(trends)
app.command(cls=Command, short_help="Watch a running application in a terminal.")(top)
app.command(cls=Command, short_help="Serve a live page about a running application.")(dashboard)


def main() -> NoReturn:
    """Run the command line. Every failure is one line and an exit status."""
    interrupts.install()
    # The command itself prints what the package logs about a failure.
    logging.getLogger("acgsperf").addHandler(logging.NullHandler())
    if "--help" in sys.argv:
        allow_broken_pipe()
    try:
        # In its standalone mode, typer prints errors as boxes of several lines.
        status = app(standalone_mode=False) or 0
    except _TyperUsageError as error:
        names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
        status = _complain(explained(error, names), 2)
    except (AcgsperfError, OSError, ValueError, TypeError) as error:
        status = _complain(error, 2)
    except SystemExit as ending:
        # A signal that came while servers ran; they are stopped now.
        status = ending.code if isinstance(ending.code, int) else 1
        if (ended := interrupts.ENDINGS.get(status - 128)) is not None:
            _complain(ended, status)
    interrupts.ignore()
    sys.exit(status)


def _complain(what: object, status: int) -> int:
    print("acgsperf:", printable(" ".join(str(what).split())), file=sys.stderr)
    return status
