"""The command line, as a shell sees it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "acgsperf"]
REPORT = {"requests", "seconds", "loads", "rows", "met"}
ROW = {"metric", "target", "achieved", "met", "value"}


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


def test_a_trace_may_be_cut_short(database, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"a": 1}\n' * 50)
    done = acgsperf("replay", trace, "--format", "jsonl", "--requests", 7, "--json", **database)
    assert json.loads(done.stdout)["requests"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["nothing"], "No such command 'nothing'"),
        (["replay", "--nothing"], "No such option: --nothing"),
        (["replay", "--requests"], "requires an argument"),
        (["replay", "--requests", "0"], "'--requests'"),
        (["replay", "--requests", "many"], "'--requests'"),
        (["replay", "--concurrency", "0"], "'--concurrency'"),
        (["replay", "--l1-size", "-1"], "'--l1-size'"),
        (["replay", "--ttl", "0"], "'--ttl'"),
        (["replay", "--ttl", "soon"], "'--ttl'"),
        (["replay", "--seed", "1.5"], "'--seed'"),
        (["replay", "--format", "csv"], "'--format'"),
        (["replay", "--format", "jsonl"], "'--format'"),
        (["replay", "--tiers", "l2"], "'--tiers'"),
        (["replay", "--tiers", "l1,l4"], "'--tiers'"),
        (["replay", "one", "two"], "two"),
        (["replay", "/nowhere/at all"], "/nowhere/at all: cannot be read: No such file or directory"),
        (["replay", "/"], "/: cannot be read: Is a directory"),
        (["bench", "--nothing"], "No such option: --nothing"),
        (["stats"], "Missing argument"),
        (["stats", "http://localhost/", "--timeout", "0"], "'--timeout'"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    done = acgsperf(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: [^\n]+\n", done.stderr)
    assert message in done.stderr


@pytest.mark.parametrize("url", ["postgresql://localhost:1/db", "postgresql:///db?host=/nowhere"])
def test_an_unreachable_database_is_one_line_and_status_2(url):
    done = acgsperf("replay", "--requests", 10, DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: PostgreSQL cannot be reached: [^\n]+ (localhost:1|/nowhere): [^\n]+\n", done.stderr)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL"])
def test_an_address_that_is_none_is_named_by_its_variable(variable):
    done = acgsperf("replay", "--requests", 10, **{variable: "nonsense"})
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"acgsperf: {variable} must [^\n]+\n", done.stderr)


def test_a_language_that_the_machine_does_not_have_is_no_failure():
    done = acgsperf("replay", "--requests", 10, "--tiers", "l1", "--json", LANG="xx_XX.UTF-8", LC_ALL="xx_XX.UTF-8")
    assert done.stderr == ""
    assert json.loads(done.stdout)["requests"] == 10


def test_a_bad_line_of_a_trace_is_named(tmp_path):
    trace = tmp_path / "trace"
    trace.write_text('{"a": 1}\n{"a": }\n')
    done = acgsperf("replay", trace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"acgsperf: {trace}:2: expected a JSON object, not '{{\"a\": }}'\n"


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


@pytest.mark.parametrize(
    ("number", "status", "complaint"),
    [(signal.SIGINT, 130, "acgsperf: interrupted\n"), (signal.SIGTERM, 143, "")],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_ends_a_replay_and_leaves_nothing_behind(tmp_path, number, status, complaint):
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    # Without -W error: an interrupted `subprocess.run` of the wheel warns of the process that it has just killed.
    with subprocess.Popen(
        [sys.executable, "-m", "acgsperf", "replay", "--requests", "5000000", "--concurrency", "4"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(tmp_path)},
    ) as process:
        # The private server's directory says that the run has begun.
        while not any(tmp_path.glob("acgs-*/pg/postmaster.pid")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, complaint)
    assert list(tmp_path.glob("acgs-*")) == []


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
    assert re.fullmatch(r"acgsperf: \S+ is not installed: pip install 'acgsperf\[cli\]'\n", done.stderr)


def test_a_comparison_runs_and_names_who_is_left_out():
    done = without(["cachetools", "moka_py"], "bench", "--quick", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    comparison = json.loads(done.stdout)
    assert {"cachetools", "moka-py"} <= set(comparison["left_out"])
    assert {"acgsperf", "dict"} <= {result["contestant"] for result in comparison["results"]}


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
