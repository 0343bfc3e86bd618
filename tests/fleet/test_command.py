"""`acgsperf fleet`, as a shell sees it."""

import json
import os
import re
import subprocess
import sys

import pytest

from acgsperf.fleet import store_of

SECRET = "secret"


def fleet(*arguments, columns=200):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "acgsperf", "fleet", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": str(columns)},
    )


@pytest.fixture
async def reports(store, report_of):
    """Two instances: one is well, and the other is not."""
    await store.publish(report_of(1, [1_000_000] * 8, name="host-a:7", version="1.0", seconds=7200.0, missed=2))
    await store.publish(
        report_of(
            *(2, [3_000_000] * 2),
            name="host-b:8",
            version="1.1",
            unhealthy=("l2", "pool default"),
            alerts=("response_time p99",),
            revision=3,
            arm="b",
        )
    )


def test_it_lists_the_instances_and_all_of_them_together(reports, url, namespace):
    done = fleet(url, "--namespace", namespace, "--timeout", "60")
    assert (done.returncode, done.stderr) == (0, "")
    title, head, _, first, second, together = (line.split() for line in done.stdout.splitlines() if line.strip())
    assert title == ["2", "instances"]
    assert head[0] == "Instance"
    assert first[:3] == ["host-a:7", "2.0", "h"]
    assert {"8", "75.00%", "1.000", "ok", "1.0"} <= set(first)
    assert {"host-b:8", "l2,", "3", "b", "1.1"} <= set(second)
    assert together[:3] == ["all", "10", "80.00%"]


def test_it_fits_into_40_columns(reports, url, namespace):
    done = fleet(url, "--namespace", namespace, "--timeout", "60", columns=40)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 40
    assert "State: l2, pool default" in done.stdout


def test_json_has_everything(reports, url, namespace, report_of):
    done = fleet(url, "--namespace", namespace, "--timeout", "60", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["requests"], found["latency"]["count"], found["missing"]) == (10, 10, [])
    assert [one["instance"] for one in found["instances"]] == [report_of(1).instance, report_of(2).instance]
    assert found["instances"][1]["arm"] == "b"


def test_without_an_instance_the_status_is_1(url, namespace):
    done = fleet(url, "--namespace", namespace, "--timeout", "60")
    assert (done.returncode, done.stderr) == (1, "")
    assert "0 instances" in done.stdout


async def test_what_cannot_be_used_is_said_below_the_table(servers, namespace, report_of):
    async with store_of(servers.redis_url, namespace, timeout=30) as store:
        await store.publish(report_of(1))
        await store.publish(report_of(2, failed=-1))
    done = fleet(servers.redis_url, "--namespace", namespace, "--timeout", "60")
    assert done.returncode == 0
    assert "1 report is damaged or too large" in done.stdout


@pytest.mark.parametrize(
    "url",
    [
        f"redis://me:{SECRET}@localhost:1",
        f"redis://me:{SECRET}@localhost:99999",
        f"rediss://me:{SECRET}@localhost:1",
        f"redis://me:{SECRET}@localhost/?unknown={SECRET}",
        f"redis+sentinel://me:{SECRET}@localhost:1/main",
        f"redis+cluster://me:{SECRET}@localhost:1",
        f"postgresql://me:{SECRET}@localhost:1/nothing",
        f"postgresql://me:{SECRET}@localhost:99999/nothing",
        f"unix:///nothing?password={SECRET}",
        f"mysql://me:{SECRET}@localhost",
        f"{SECRET}",
        "",
    ],
)
def test_anything_wrong_is_one_line_without_a_password(url):
    done = fleet(url, "--timeout", "30")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"acgsperf: [^\n]+\n", done.stderr)
    assert SECRET not in done.stderr
