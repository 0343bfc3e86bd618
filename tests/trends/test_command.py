"""`acgsperf trends`, as a shell sees it, with real hours in PostgreSQL."""

import json
import math
import os
import random
import re
import subprocess
import sys

import pytest

from trends.conftest import HOUR, encoded, levels, this_hour

SECRET = "secret"


def trends(*arguments, columns=200, **environ):
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "acgsperf", "trends", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=inherited | {"COLUMNS": str(columns)} | environ,
    )


async def write_weeks(writer, **options):
    """Write weeks whose last day is slower, with a version for that day."""
    source = random.Random(1)
    sample = [source.lognormvariate(13, 0.5) for _ in range(1_000)]
    found = list(levels(1, **options))
    first = this_hour() - len(found) * HOUR
    rows = []
    for at, level in enumerate(found):
        version = "2" if at >= len(found) - 24 else "1"
        latency = encoded([int(ns * math.exp(level)) for ns in sample])
        rows.append((first + at * HOUR, version, "", 1, 0, 20, latency))
    await writer.write(*rows)


async def test_a_regression_is_named_with_its_version_and_the_status_is_1(writer, servers, namespace):
    await write_weeks(writer, slower=0.1)
    done = trends(servers.database_url, "--namespace", namespace, "--timeout", "60")
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(
        r"^P99 \d+\.\d% slower since \d{4}-\d\d-\d\d \d\d:00 UTC; version 2 appeared then$", done.stdout, re.MULTILINE
    )
    weeks, versions = done.stdout.split("Each version")
    assert weeks.count("168,168") == 4
    assert re.search(r"^2 +24,024 +98\.00% +0\.10% .* \+\d+\.\d%", versions, re.MULTILINE)
    assert "672 hours with requests, until" in done.stdout

    done = trends("--namespace", namespace, "--timeout", "60", "--json", DATABASE_URL=servers.database_url)
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    (change,) = (change for change in found["changes"] if change["figure"] == "p99")
    assert change["change"] == pytest.approx(0.1, abs=0.04)
    assert change["version"] == "2"
    assert abs(change["since"] - (this_hour() - 24 * HOUR)) <= 6 * HOUR

    done = trends(servers.database_url, "--namespace", namespace, "--timeout", "60", "--days", "0.1")
    assert done.returncode == 0
    assert "nothing became slower or faster in the last 0.1 days" in done.stdout


async def test_without_a_regression_the_status_is_0_and_it_fits_into_40_columns(writer, servers, namespace):
    await write_weeks(writer)
    done = trends(servers.database_url, "--namespace", namespace, "--timeout", "60", columns=40)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing became slower or faster" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40


def test_without_hours_it_says_so(servers, namespace):
    done = trends(servers.database_url, "--namespace", namespace, "--timeout", "60")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["0 hours with requests", "no hours yet"]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@localhost:1/nothing",
        f"postgresql://me:{SECRET}@localhost:99999/nothing",
        f"redis://me:{SECRET}@localhost",
        f"{SECRET}",
        "",
    ],
)
def test_anything_wrong_is_one_line_without_a_password(url):
    done = trends(url, "--timeout", "30")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: [^\n]+\n", done.stderr)
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the argument URL is missing, and DATABASE_URL is not set (--help shows what is possible)"),
        (("postgresql://h/d", "--days", "91"), "--days must be a number from 0.01 to 90, got '91'"),
        (("postgresql://h/d", "--namespace", ""), "namespace must be 1 to 100 printable characters, got ''"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    done = trends(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"acgsperf: {message}\n")
