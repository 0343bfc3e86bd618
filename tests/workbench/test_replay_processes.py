"""The replay with several processes, on real servers."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from acgsperf.errors import AcgsperfError
from acgsperf.workbench import replay_process, replay_writes
from acgsperf.workbench.embedded import embedded_servers
from acgsperf.workbench.replay import Load, replay
from acgsperf.workbench.replay_process import OtherProcess
from acgsperf.workbench.replay_run import Options
from acgsperf.workbench.traces import zipf_trace

COMMAND = [sys.executable, "-W", "error", "-m", "acgsperf", "replay", "--processes", "2"]
METRICS = [
    "P50 latency",
    "P95 latency",
    "P99 latency",
    "Throughput",
    "Cache hit rate",
    "Compliance",
    "Validation P99",
    "L1 access P99",
    "Answers from L1",
    "Answers from L2",
    "Answers from L3",
    "Answers from the origin",
    "Invalidation lag, median",
    "Invalidation lag, P99",
    "Outdated answers",
    "Outdated for at most",
]
OTHER = "acgsperf.workbench.replay_process"


@pytest.fixture
def tiers(servers):
    return {"database_url": servers.database_url, "redis_url": servers.redis_url, "l3": True}


def values(report, metric):
    return [row.value for row in report.rows if row.metric == metric]


def processes():
    """The processes that this test and its commands have started to take part in replays."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if OTHER in (folder / "cmdline").read_text().split("\0"):
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                found[int(folder.name)] = int(status["PPid"])
    return found


def other_of(parent):
    return next((pid for pid, its_parent in processes().items() if its_parent == parent), None)


async def replay_tables(url):
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE 'acgsperf_replay%'")
        return [row[0] for row in found]
    finally:
        await connection.close()


async def test_each_process_reports_every_metric(tiers):
    trace = zipf_trace(6_000, distinct=1_000)
    report = await replay(trace, **tiers, processes=2)
    assert (report.requests, report.processes, report.refused) == (12_000, 2, 0)
    for number in (1, 2):
        assert [row.metric for row in report.rows if row.process == number] == METRICS
    assert [len(rows) for rows in report.by_metric()] == [2] * len(METRICS)
    assert report.as_dict()["processes"] == 2
    assert report.writes > report.unacknowledged


async def test_every_answer_came_from_somewhere(tiers):
    report = await replay(zipf_trace(6_000, distinct=1_000), **tiers, processes=2)
    shares = [[row.value for row in report.rows if "Answers from" in row.metric and row.process == p] for p in (1, 2)]
    assert all(sum(of_process) == pytest.approx(1, abs=0.001) for of_process in shares)
    # L1 holds a tenth of the keys, and L2 has every value.
    assert all(l1 < 0.9 < l1 + l2 for l1, l2, _, _ in shares)


async def test_the_other_process_starts_with_an_empty_l1(tiers):
    trace = [{"key": key} for key in range(400)]
    report = await replay(trace, **tiers, processes=2, l1_size=400, writes=0, concurrency=1)
    first, second = values(report, "Answers from L1")
    assert first == 1
    assert second == 0
    assert values(report, "Answers from the origin") == [0, 0]
    assert "Outdated answers" not in {row.metric for row in report.rows}
    assert report.loads == 400


@pytest.mark.parametrize("lower", [("redis_url",), ("l3",), ("redis_url", "l3")], ids="+".join)
async def test_no_answer_is_older_than_a_write(tiers, lower):
    used = {"database_url": tiers["database_url"]} | {name: tiers[name] for name in lower}
    trace = [{"key": i % 20} for i in range(60_000)]
    report = await replay(trace, **used, processes=2, l1_size=20, writes=0.5)
    assert values(report, "Outdated answers") == [0, 0]
    assert all(row.met for row in report.rows if row.metric == "Outdated answers")
    assert all(value > 0 for value in values(report, "Invalidation lag, median"))
    assert report.writes > 0


async def test_without_a_backplane_outdated_answers_are_found(tiers, monkeypatch):
    monkeypatch.setattr(replay_writes, "ALLOWED_LAG_S", 0.02)
    trace = [{"key": i % 20} for i in range(200_000)]
    report = await replay(trace, **tiers, processes=2, l1_size=20, writes=1, backplane=False)
    row = next(row for row in report.rows if row.metric == "Outdated answers")
    assert row.met is False
    assert row.value > 0
    assert not report.met
    assert values(report, "Outdated for at most")[0] > 20
    lags = [row.achieved for row in report.rows if row.metric.startswith("Invalidation lag")]
    assert lags == ["no backplane"] * 4


async def test_one_process_knows_its_own_writes(tiers):
    trace = [{"key": i % 20} for i in range(60_000)]
    report = await replay(trace, **tiers, writes=1)
    assert values(report, "Outdated answers") == [0]
    assert "Invalidation lag, P99" not in {row.metric for row in report.rows}
    assert "L2 tier" in {row.metric for row in report.rows}


async def test_three_processes_answer_as_well(tiers):
    report = await replay(zipf_trace(3_000, distinct=300), **tiers, processes=3, writes=0.1)
    assert report.requests == 9_000
    assert Counter(row.process for row in report.rows) == {1: len(METRICS), 2: len(METRICS), 3: len(METRICS)}
    assert values(report, "Outdated answers")[0] in (0, None)


async def test_refused_requests_count_in_every_process(tiers):
    good, bad = {"key": 1}, {"constitutional_hash": "0" * 16}
    report = await replay([good, bad] * 500, **tiers, processes=2)
    assert (report.requests, report.refused) == (2_000, 1_000)
    assert values(report, "Compliance") == [0.5, 0.5]


async def test_requests_of_every_kind_reach_the_other_process(tiers):
    trace = [{"key": value} for value in (2**60, -(10**30), -0.0, 1.5, None, True, [1, {"a": []}], "ключ")]
    report = await replay(trace * 50, **tiers, processes=2, writes=0)
    assert report.loads == len(trace)


@pytest.fixture
def own_redis(monkeypatch):
    """A server that no other test uses. Entries of other tests would count as memory of the replay."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    with embedded_servers(redis=True, postgres=False) as servers:
        yield servers.redis_url


async def test_a_private_redis_has_no_memory_for_all_values(tiers, own_redis):
    tiers = tiers | {"redis_url": own_redis}
    async with redis.asyncio.Redis.from_url(own_redis, protocol=2) as client:
        before = await client.config_get("maxmemory*")
        report = await replay(zipf_trace(15_000, distinct=5_000), **tiers, processes=2, private_redis=True)
        assert await client.config_get("maxmemory*") == before
    assert all(share > 0 for share in values(report, "Answers from L3"))
    assert values(report, "Outdated answers")[0] in (0, None)


async def test_the_requests_that_fill_the_tiers_are_progress_too(tiers):
    advances = []
    await replay([{"key": i % 7} for i in range(500)], **tiers, processes=2, advanced=advances.append)
    assert sum(advances) == 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 0}, "processes must be at least 1, got 0"),
        ({"writes": 1.5}, "writes must be from 0 to 1, got 1.5"),
        ({"writes": -0.1}, "writes must be from 0 to 1, got -0.1"),
        (
            {"processes": 2, "redis_url": None, "l3": False},
            "2 processes need redis_url or l3: without them they share no values",
        ),
    ],
)
async def test_bad_arguments_are_named(tiers, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        await replay([{"key": 1}], **tiers | arguments)


def options(url, **others):
    return Options(
        database_url=url,
        redis_url=None,
        l3=False,
        table="nothing",
        concurrency=1,
        l1_size=1,
        ttl=1,
        patience=0,
        process=2,
        processes=2,
        **others,
    )


async def test_an_error_in_the_other_process_is_one_line():
    with pytest.raises(AcgsperfError, match=r"^process 2: PostgreSQL cannot be reached: [^\n]+$"):
        async with OtherProcess(options("postgresql:///db?host=/nowhere")) as other:
            await other.prepare(Load.of([{"key": 1}]), [])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("/nowhere/python", r"process 2 cannot be started: .+"),
        ("/bin/false", r"process 2 ended with status 1: it printed nothing"),
        ("/bin/ls", r"process 2 ended with status 2: .+"),
    ],
)
async def test_a_process_that_does_not_start_is_one_line(tiers, monkeypatch, program, message):
    monkeypatch.setattr(replay_process.sys, "executable", program)
    with pytest.raises(AcgsperfError, match=f"^{message}$"):
        await replay([{"key": 1}] * 100, **tiers, processes=2)
    assert await replay_tables(tiers["database_url"]) == []


async def test_a_cancelled_replay_ends_the_other_process_and_drops_its_tables(tiers):
    task = asyncio.create_task(replay(zipf_trace(300_000), **tiers, processes=2))
    while other_of(os.getpid()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert other_of(os.getpid()) is None
    assert await replay_tables(tiers["database_url"]) == []
    assert len(asyncio.all_tasks()) == 1


@pytest.fixture
def environment(servers):
    return os.environ | {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}


def command(*arguments, environment, **others):
    return subprocess.run(
        [*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=120, env=environment | others
    )


def test_the_command_prints_a_table_of_80_columns(environment):
    done = command("--requests", "5000", environment=environment, COLUMNS="80")
    assert done.returncode in {0, 1}
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(re.fullmatch(r"Metric +Target +Process 1 +Process 2 +Status *", line) for line in lines)
    # No row needs a second line.
    assert [metric for metric in METRICS if any(line.startswith(f"{metric}  ") for line in lines)] == METRICS


def test_the_command_prints_a_paragraph_for_each_metric_in_40_columns(environment):
    done = command("--requests", "3000", environment=environment, COLUMNS="40")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert [line for line in lines if line in METRICS] == METRICS
    assert len([line for line in lines if line.startswith("  Process 2: ")]) == len(METRICS)


def test_the_command_prints_json_and_nothing_else(environment):
    done = command("--requests", "3000", "--writes", "0.05", "--json", environment=environment)
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (0 if report["met"] else 1)
    assert (report["processes"], report["requests"]) == (2, 6_000)
    assert {row["process"] for row in report["rows"]} == {1, 2}
    assert {"writes", "unacknowledged"} <= report.keys()


WITHOUT_BACKPLANE = """
import functools
from acgsperf.workbench import replay, replay_writes
replay_writes.ALLOWED_LAG_S = 0.02
replay.replay = functools.partial(replay.replay, backplane=False)
from acgsperf.cli import main
main()
"""


def test_outdated_answers_end_the_command_with_status_1(environment, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("".join(f"{i % 20}\n" for i in range(200_000)))
    arguments = ["replay", str(trace), "--processes", "2", "--writes", "1", "--l1-size", "20", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BACKPLANE, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    outdated = [row for row in json.loads(done.stdout)["rows"] if row["metric"] == "Outdated answers"]
    assert outdated[0]["met"] is False
    assert (done.returncode, done.stderr) == (1, "")


def start(scratch, *arguments):
    """The command with servers of its own, in a process group of its own, as a terminal starts it."""
    environment = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"TMPDIR": str(scratch)},
        start_new_session=True,
    )


def wait_for_other(process):
    while (other := other_of(process.pid)) is None:
        assert process.poll() is None
        time.sleep(0.005)
    return other


def is_gone(pid, seconds=10.0):
    deadline = time.monotonic() + seconds
    while pid in processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("number", "times", "status", "complaint"),
    [
        (signal.SIGINT, 1, 130, "acgsperf: interrupted\n"),
        (signal.SIGINT, 3, 130, "acgsperf: interrupted\n"),
        (signal.SIGTERM, 1, 143, "acgsperf: terminated\n"),
    ],
    ids=["SIGINT", "SIGINT-thrice", "SIGTERM"],
)
@pytest.mark.parametrize("running", [False, True], ids=["starting", "running"])
def test_a_signal_ends_both_processes_and_the_servers(
    scratch, check_nothing_left, running, number, times, status, complaint
):
    with start(scratch, "--requests", "300000") as process:
        other = wait_for_other(process)
        if running:
            while b"asyncpg" not in Path(f"/proc/{other}/maps").read_bytes():
                assert process.poll() is None
                time.sleep(0.005)
        for _ in range(times):
            os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, complaint)
    assert is_gone(other, 0)
    check_nothing_left(scratch)


def test_the_other_process_ends_if_the_command_is_killed(scratch):
    with start(scratch, "--requests", "300000") as process:
        other = wait_for_other(process)
        process.kill()
        process.wait(60)
        assert is_gone(other)
    # A shell removes the servers.
    deadline = time.monotonic() + 30
    while list(scratch.glob("acgs-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(scratch.glob("acgs-*")) == []


def test_another_process_that_is_killed_is_one_line(scratch, check_nothing_left):
    with start(scratch, "--requests", "300000") as process:
        os.kill(wait_for_other(process), signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    assert errors == "acgsperf: process 2 was ended by SIGKILL\n"
    check_nothing_left(scratch)
