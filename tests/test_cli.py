"""The command line, as a shell sees it."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "acgsperf"]
REPORT = {"requests", "refused", "seconds", "loads", "processes", "writes", "unacknowledged", "rows", "met"}
ROW = {"metric", "target", "achieved", "met", "value", "process"}


def acgsperf(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


@pytest.fixture
def database(servers):
    """The environment in which a command uses the server that runs already."""
    return {"DATABASE_URL": servers.database_url}


def test_help_names_the_commands():
    done = acgsperf("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "replay" in done.stdout
    assert "bench" in done.stdout
    assert "stats" in done.stdout


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("replay", "[OPTIONS] [TRACE]"),
        ("simulate", "[OPTIONS] TRACE..."),
        ("bench", "[OPTIONS]"),
        ("validate", "[OPTIONS] HASH..."),
        ("stats", "[OPTIONS] URL"),
        ("top", "[OPTIONS] URL"),
        ("dashboard", "[OPTIONS] URL"),
        ("fleet", "[OPTIONS] URL"),
        ("trends", "[OPTIONS] [URL]"),
    ],
)
def test_the_usage_of_a_command_has_the_usual_form(command, usage):
    done = acgsperf(command, "--help", COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"acgsperf {command} {usage}\n" in done.stdout
    assert "<" not in done.stdout


def test_version_is_one_line():
    done = acgsperf("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"acgsperf \d+\.\d+\.\d+\S*\n", done.stdout)


def test_a_replay_prints_json_and_nothing_else(database):
    done = acgsperf("replay", "--requests", 3_000, "--json", **database)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["met"] else 1)
    assert done.stderr == ""
    assert report.keys() == REPORT
    assert report["requests"] == 3_000
    assert all(row.keys() == ROW for row in report["rows"])


def test_a_replay_prints_a_table(database):
    done = acgsperf("replay", "--requests", 1_000, **database)
    assert done.returncode in {0, 1}
    assert done.stderr == ""
    assert "Cache hit rate" in done.stdout


def test_a_missed_target_is_status_1(database, tmp_path):
    trace = tmp_path / "unique"
    trace.write_text("".join(f"{i}\n" for i in range(100)))
    done = acgsperf("replay", trace, "--json", **database)
    assert done.returncode == 1
    assert done.stderr == ""
    assert not json.loads(done.stdout)["met"]


def test_a_trace_whose_requests_are_all_refused_meets_no_target_that_needs_answers(database, tmp_path):
    trace = tmp_path / "refused.jsonl"
    trace.write_text("".join(f'{{"constitutional_hash": "{0:016}", "id": {i}}}\n' for i in range(100)))
    done = acgsperf("replay", trace, COLUMNS="200", **database)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0].startswith("100 requests, all refused by the compliance gate, in ")
    for metric in ("P50 latency", "P95 latency", "P99 latency", "Throughput", "Cache hit rate"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(metric))
        assert re.search(r"not measured +missed\s*$", line), line


def test_a_count_of_one_is_in_the_singular(database, tmp_path):
    done = acgsperf("replay", "--requests", "1", COLUMNS="200", **database)
    assert re.match(r"1 request in \d", done.stdout)
    trace = tmp_path / "trace"
    trace.write_text("<a>\n")
    assert "looked at 1 line, which is '<a>'" in acgsperf("replay", trace).stderr


def test_a_trace_may_be_cut_short(database, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"a": 1}\n' * 50)
    done = acgsperf("replay", trace, "--format", "jsonl", "--requests", 7, "--json", **database)
    assert json.loads(done.stdout)["requests"] == 7


def test_a_simulation_prints_a_table_or_json(tmp_path):
    trace = tmp_path / "loop.txt"
    trace.write_text("".join(f"key-{i % 20}\n" for i in range(400)))
    done = acgsperf("simulate", trace, "--sizes", "10,50%,20", "--policies", "lru,belady", COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"loop.txt *\n *10 +0.00 +\d+.\d\d *\n *20 +95.00 +95.00 *\n", done.stdout)
    done = acgsperf("simulate", trace, trace, "--sizes", "10", "--seeds", 2, "--requests", 200, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [item["policy"] for item in found] == ["lru", "s3fifo", "adaptive", "belady"] * 2
    assert [len(item["hit_ratios"]) for item in found] == [1, 2, 2, 1] * 2


HELP = " (--help shows what is possible)"
COMMANDS = "bench, dashboard, doctor, fleet, replay, simulate, stats, top, trends or validate"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"a command is missing, expected {COMMANDS}{HELP}"),
        (["nothing"], f"there is no command 'nothing', expected {COMMANDS}"),
        (["replay", "--nothing"], f"there is no option '--nothing'{HELP}"),
        (["replay", "-x"], f"there is no option '-x'{HELP}"),
        (["replay", "--request", "5"], "there is no option '--request', perhaps --requests"),
        (["replay", "--requests"], f"the option --requests needs a value{HELP}"),
        (["replay", "--json=5"], f"the option --json takes no value{HELP}"),
        (["simulate"], f"the argument TRACE is missing{HELP}"),
        (
            ["simulate", os.devnull, "--policies", "arc"],
            "--policies must be of lru, s3fifo, adaptive or belady, got 'arc'",
        ),
        (["simulate", os.devnull, "--seeds", "0"], "--seeds must be a whole number from 1 to 1,000, got '0'"),
        (["replay", "--requests", "0"], "--requests must be a whole number from 1 to 100,000,000, got '0'"),
        (["replay", "--requests", "many"], "--requests must be a whole number from 1 to 100,000,000, got 'many'"),
        (["replay", "--requests", ""], "--requests must be a whole number from 1 to 100,000,000, got ''"),
        (
            ["replay", "--requests", "99999999999999999999"],
            "--requests must be a whole number from 1 to 100,000,000, got '99999999999999999999'",
        ),
        (
            ["replay", "--requests", "9" * 5_000],
            f"--requests must be a whole number from 1 to 100,000,000, got '{'9' * 60}'...",
        ),
        (["replay", "--concurrency", "0"], "--concurrency must be a whole number from 1 to 10,000, got '0'"),
        (["replay", "--rate", "0"], "--rate must be a whole number from 1 to 1,000,000, got '0'"),
        (["replay", "--policy", "arc"], "--policy must be adaptive, s3fifo or lru, got 'arc'"),
        (["replay", "--l1-size", "-1"], "--l1-size must be a whole number from 1 to 1,073,741,824, got '-1'"),
        (["replay", "--processes", "0"], "--processes must be a whole number from 1 to 16, got '0'"),
        (["replay", "--writes", "2"], "--writes must be a number from 0 to 1, got '2'"),
        (["replay", "--processes", "2", "--tiers", "l1"], "--processes 2 needs --tiers with l2 or l3, got 'l1'"),
        (["replay", "--cluster", "--tiers", "l1,l3"], "--cluster needs --tiers with l2, got 'l1,l3'"),
        (["replay", "--ttl", "0"], "--ttl must be a number from 0.001 to 1,000,000,000, got '0'"),
        (["replay", "--ttl", "soon"], "--ttl must be a number from 0.001 to 1,000,000,000, got 'soon'"),
        (["replay", "--ttl", "nan"], "--ttl must be a number from 0.001 to 1,000,000,000, got 'nan'"),
        (["replay", "--ttl", "inf"], "--ttl must be a number from 0.001 to 1,000,000,000, got 'inf'"),
        (
            ["replay", "--seed", "1.5"],
            "--seed must be a whole number from -9,223,372,036,854,775,808 to 9,223,372,036,854,775,807, got '1.5'",
        ),
        (["replay", "--format", "jsonl"], "--format jsonl needs a TRACE argument"),
        (
            ["replay", "a.log", "--format", "csv"],
            "--format must be int32, int64, text, jsonl, access-log or json-log, got 'csv'",
        ),
        (
            ["replay", "a.log", "--seed", "4"],
            "--seed 4 is for the synthetic workload, and cannot be used with the trace a.log",
        ),
        (["replay", "--tiers", "l2"], "--tiers must be l1, or l1 with l2, l3, got 'l2'"),
        (["replay", "--tiers", "l1,l4"], "--tiers must be l1, or l1 with l2, l3, got 'l1,l4'"),
        (["replay", "--tiers", "l1,l1"], "--tiers must have each name once, got 'l1,l1'"),
        (["replay", "--tiers", "l1,L2,l2"], "--tiers must have each name once, got 'l1,L2,l2'"),
        (["replay", "one", "two"], f"there is one argument too many, 'two'{HELP}"),
        (["replay", "/nowhere/at all"], "/nowhere/at all: cannot be read: No such file or directory"),
        (["replay", "/"], "/: cannot be read: Is a directory"),
        (["replay", ""], "'': cannot be read: Is a directory"),
        (["bench", "--nothing"], f"there is no option '--nothing'{HELP}"),
        (["bench", "--json", "--markdown"], "--json and --markdown cannot be used together"),
        (["validate"], f"the argument HASH is missing{HELP}"),
        (["stats"], f"the argument URL is missing{HELP}"),
        (["fleet"], f"the argument URL is missing{HELP}"),
        (["fleet", "redis://localhost", "--timeout", "0"], "--timeout must be a number from 0.001 to 3,600, got '0'"),
        (["fleet", "redis://localhost", "--namespace", ""], "namespace must be 1 to 100 printable characters, got ''"),
        (
            ["fleet", "mysql://me:secret@localhost"],
            "the URL must be one of Redis or PostgreSQL, such as redis:// or postgresql://, got mysql://***",
        ),
        (["stats", "http://localhost/", "--timeout", "0"], "--timeout must be a number from 0.001 to 3,600, got '0'"),
        (
            ["stats", "localhost:8000"],
            "the URL must begin with http:// or https:// and name a host, got 'localhost:8000'",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_of_ours_that_names_the_value(arguments, message):
    done = acgsperf(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"acgsperf: {message}\n"


@pytest.mark.parametrize("url", ["postgresql://localhost:1/db", "postgresql:///db?host=/nowhere"])
def test_an_unreachable_database_is_one_line_and_status_2(url):
    done = acgsperf("replay", "--requests", 10, DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (2, "")
    server = "(localhost:1|unix:/nowhere)"
    assert re.fullmatch(rf"acgsperf: PostgreSQL cannot be reached: [^\n]+ {server}: [^\n]+\n", done.stderr)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_an_address_that_is_none_is_named_by_its_variable(variable):
    done = acgsperf("replay", "--requests", 10, **{variable: "nonsense"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"acgsperf: {variable} must [^\n]+\n", done.stderr)


def test_a_language_that_the_machine_does_not_have_is_no_failure():
    done = acgsperf("replay", "--requests", 10, "--tiers", "l1", "--json", LANG="xx_XX.UTF-8", LC_ALL="xx_XX.UTF-8")
    assert done.stderr == ""
    assert json.loads(done.stdout)["requests"] == 10


def test_too_many_bad_lines_of_a_trace_are_an_error(tmp_path):
    trace = tmp_path / "trace"
    trace.write_text('{"a": 1}\n{"a": }\n')
    done = acgsperf("replay", trace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"acgsperf: {trace}: 1 of 2 lines are not jsonl, expected at most 10 %; the first is line 2: "
        "expected a JSON object, got '{\"a\": }'\n"
    )


def test_the_table_and_the_json_name_the_format_and_the_skipped_lines(database, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text('{"a": 1}\n' * 10 + '{"a"\n')
    done = acgsperf("replay", trace, COLUMNS="200", **database)
    assert "format jsonl, 1 of 11 lines skipped" in done.stdout
    done = acgsperf("replay", trace, "--json", **database)
    assert json.loads(done.stdout)["trace"] == {"name": str(trace), "format": "jsonl", "lines": 11, "skipped": 1}


def test_a_trace_may_come_from_the_standard_input(database):
    done = subprocess.run(
        [*COMMAND, "replay", "-", "--json"],
        check=False,
        capture_output=True,
        input=b"a\nb\na\n",
        timeout=120,
        env=os.environ | database,
    )
    assert done.stderr == b""
    report = json.loads(done.stdout)
    assert (report["requests"], report["trace"]["format"]) == (3, "text")


def test_only_the_requested_part_of_a_trace_is_read(database):
    # `yes` prints without end, until its reader has gone.
    done = subprocess.run(
        ["bash", "-c", 'yes key | exec "$@"', "bash", *COMMAND, "replay", "-", "--requests", "5", "--json"],
        check=False,
        capture_output=True,
        timeout=120,
        env=os.environ | database,
    )
    assert json.loads(done.stdout)["requests"] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["replay", "--help"],
        ["bench", "--help"],
        ["doctor", "--help"],
        ["validate", "--help"],
        ["stats", "--help"],
        ["top", "--help"],
        ["dashboard", "--help"],
        ["fleet", "--help"],
        ["trends", "--help"],
        ["replay", "--requests", "1000"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_output_fits_40_columns_and_no_word_is_cut(servers, arguments):
    environ = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url, "DB_POOL_MAX_SIZE": "50"}
    wide, narrow = (acgsperf(*arguments, **environ, COLUMNS=columns).stdout for columns in ("200", "40"))
    assert narrow
    assert all(len(line) <= 40 for line in narrow.splitlines())
    # Figures differ from run to run, as does what the lower tiers had to do. The narrow layout has its own marks.
    repeatable = re.sub(r"^L[23] tier.*$", "", wide, flags=re.MULTILINE)
    words = {word for word in re.findall(r"[^\s─]+", repeatable) if not re.search(r"\d", word)}
    missing = words - set(re.findall(r"[^\s]+", narrow.replace(":", ""))) - set(narrow.split())
    assert missing <= {"-", "met", "missed", "Metric"}


@pytest.mark.parametrize(
    "arguments",
    [["replay", "--requests", "1000", "--json"], ["validate", "cdd01ef066bc6cf2"], ["--version"], ["--help"]],
    ids=lambda arguments: arguments[0],
)
def test_output_that_nobody_reads_is_no_complaint(database, arguments):
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | database,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == -signal.SIGPIPE


def start(scratch, *arguments, python=()):
    """A command in a process group of its own, as a terminal starts it, with temporary files in a folder."""
    environment = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    return subprocess.Popen(
        [sys.executable, *python, "-m", "acgsperf", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(scratch)},
        start_new_session=True,
    )


def press(process, number, times):
    """Send a signal to the whole group, as a terminal does."""
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, number)


SIGNALS = pytest.mark.parametrize(
    ("number", "times", "status", "complaint"),
    [
        (signal.SIGINT, 1, 130, "acgsperf: interrupted\n"),
        (signal.SIGINT, 3, 130, "acgsperf: interrupted\n"),
        (signal.SIGTERM, 1, 143, "acgsperf: terminated\n"),
    ],
    ids=["SIGINT", "SIGINT-thrice", "SIGTERM"],
)


@SIGNALS
@pytest.mark.parametrize("command", ["replay", "doctor"])
@pytest.mark.parametrize("sign", ["acgs-*", "acgs-*/pg", "acgs-*/pg/PG_VERSION", "acgs-*/pg/postmaster.pid"])
def test_a_signal_while_servers_start_or_run_leaves_nothing_behind(
    scratch, check_nothing_left, command, sign, number, times, status, complaint
):
    options = ["--requests", "300000"] if command == "replay" else []
    with start(scratch, command, *options) as process:
        while not any(scratch.glob(sign)):
            assert process.poll() is None
            time.sleep(0.001)
        press(process, number, times)
        _, errors = process.communicate(timeout=60)
    # An examination may have ended by itself: its last server lives for a moment only.
    if command == "replay" or process.returncode != 0:
        assert (process.returncode, errors) == (status, complaint)
    check_nothing_left(scratch)


@SIGNALS
def test_a_signal_while_requests_are_replayed_leaves_nothing_behind(
    scratch, servers, check_nothing_left, number, times, status, complaint
):
    database = asyncio.run(first_replay_table(servers.database_url))
    assert database == []
    with subprocess.Popen(
        [*COMMAND, "replay", "--requests", "300000", "--tiers", "l1"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"DATABASE_URL": servers.database_url, "TMPDIR": str(scratch)},
        start_new_session=True,
    ) as process:
        while not asyncio.run(first_replay_table(servers.database_url)):
            assert process.poll() is None
        press(process, number, times)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, complaint)
    assert asyncio.run(first_replay_table(servers.database_url)) == []
    check_nothing_left(scratch)


async def first_replay_table(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch("SELECT 1 FROM pg_tables WHERE tablename LIKE 'acgsperf_replay%'")
    finally:
        await connection.close()


IMPORTED = [
    "acgsperf.interrupts",
    "acgsperf.errors",
    "prometheus_client",
    "typer",
    "rich.console",
    "acgsperf.workbench.replay",
]
OTHERS = ["bench", "doctor", "validate", "stats", "--help"]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(("replay", module) for module in IMPORTED),
        *((other, "typer") for other in OTHERS),
        ("bench", "acgsperf.workbench.compare"),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_one_line(scratch, command, module, times):
    with start(scratch, command, python=("-X", "importtime")) as process:
        for line in process.stderr:
            if line.rstrip().endswith(f"| {module}") or line.rstrip().endswith(f" {module}"):
                break
        else:
            pytest.fail(f"{module} is not imported")
        press(process, signal.SIGINT, times)
        _, errors = process.communicate(timeout=60)
    others = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert process.returncode == 130
    assert "".join(others).endswith("acgsperf: interrupted")
    assert "Traceback" not in errors


def test_ctrl_c_while_the_standard_input_is_read_is_one_line(scratch):
    with start(scratch, "replay", "-", python=("-X", "importtime")) as process:
        for line in process.stderr:
            if line.rstrip().endswith("acgsperf.workbench.traces"):
                break
        press(process, signal.SIGINT, 1)
        process.wait(60)
        assert process.returncode == 130
        assert process.stderr.read().endswith("acgsperf: interrupted\n")


def test_sigterm_while_modules_are_imported_is_one_line(scratch):
    with start(scratch, "replay", python=("-X", "importtime")) as process:
        for line in process.stderr:
            if line.rstrip().endswith(" typer"):
                break
        press(process, signal.SIGTERM, 1)
        process.wait(60)
        assert process.returncode == 143
        assert process.stderr.read().endswith("acgsperf: terminated\n")


def test_ctrl_c_while_a_page_is_fetched_is_one_line(scratch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with start(scratch, "stats", url, "--timeout", "60") as process:
            connection, _ = silent.accept()
            press(process, signal.SIGINT, 1)
            assert process.communicate(timeout=60) == ("", "acgsperf: interrupted\n")
            connection.close()
    assert process.returncode == 130


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({modules!r}))
sys.argv = ["acgsperf", *{arguments!r}]
from acgsperf.cli import main
main()
"""


def without(modules, *arguments):
    code = BLOCKED.format(modules=modules, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["prometheus_client", "typer", "rich.console"])
def test_a_missing_extra_says_how_to_install_it(module):
    done = without([module], "--version")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"acgsperf: \S+ is not installed, and the command needs the extra cli: pip install 'acgsperf\[cli\]', "
        r"or pip install -e '\.\[cli,embedded\]' in a clone\n",
        done.stderr,
    )


def test_a_comparison_runs_and_names_who_is_left_out():
    done = without(["cachetools", "moka_py"], "bench", "--quick", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    comparison = json.loads(done.stdout)
    assert {"cachetools", "moka-py"} <= set(comparison["left_out"])
    assert {"acgsperf", "dict"} <= {result["contestant"] for result in comparison["results"]}


def test_a_long_line_of_doctor_is_continued_under_its_subject(servers):
    environ = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url, "DB_POOL_MAX_SIZE": "5000"}
    lines = acgsperf("doctor", **environ, COLUMNS="40").stdout.splitlines()
    first = [line for line in lines if re.match(r"(ok|warning) ", line)]
    assert len(first) == 5 < len(lines)
    assert {len(line) - len(line.lstrip()) for line in lines if line not in first} == {8}
    lines = acgsperf("doctor", **environ, COLUMNS="70").stdout.splitlines()
    assert {len(line) - len(line.lstrip()) for line in lines if not re.match(r"(ok|warning) ", line)} == {19}


def test_doctor_prints_a_line_each_and_its_status_tells(servers):
    environ = {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url, "DB_POOL_MAX_SIZE": "50"}
    done = acgsperf("doctor", **environ)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 5, "")
    done = acgsperf("doctor", "--json", **environ | {"REDIS_URL": "redis://localhost:1"})
    assert done.returncode == 1
    assert [finding["severity"] for finding in json.loads(done.stdout)].count("error") == 1


def test_validate_says_of_each_hash_what_a_service_would():
    done = acgsperf("validate", "cdd01ef066bc6cf2", "CDD01EF066BC6CF2", "0123456789abcdef")
    assert (done.returncode, done.stderr) == (1, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["valid", "malformed", "mismatch"]
    assert acgsperf("validate", "0123456789abcdef", CONSTITUTIONAL_HASH="0123456789abcdef").returncode == 0
    done = acgsperf("validate", "--json", "cdd01ef066bc6cf2", "0")
    assert done.returncode == 1
    assert json.loads(done.stdout) == [
        {"hash": "cdd01ef066bc6cf2", "verdict": "valid"},
        {"hash": "0", "verdict": "malformed"},
    ]


def test_validate_names_a_variable_that_cannot_be_used():
    done = acgsperf("validate", "cdd01ef066bc6cf2", CONSTITUTIONAL_HASH="nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: CONSTITUTIONAL_HASH must be [^\n]+ got 'nonsense'\n", done.stderr)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_run_says_what_it_does_before_each_long_step(tmp_path):
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "run", f"VENV={tmp_path}/venv"],
        check=True,
        # Without the options of the `make` that runs the tests.
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=60,
    )
    steps = [line for line in done.stdout.splitlines() if not line.startswith("touch ")]
    assert [line.startswith("echo ") for line in steps] == [True, False] * 3
