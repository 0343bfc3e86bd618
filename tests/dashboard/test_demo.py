"""`make demo`: what it prints works, and Ctrl-C leaves nothing."""

import json
import os
import re
import signal
import subprocess
import sys

import httpx


def test_the_demo_shows_three_instances_and_leaves_nothing(scratch, check_nothing_left):
    environment = os.environ | {"TMPDIR": str(scratch)}
    environment = {name: value for name, value in environment.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    with subprocess.Popen(
        [sys.executable, "-m", "acgsperf.dashboard.demo"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            urls = re.findall(r"http://\S+/dashboard/", "".join(lines))
            assert len(urls) == 3
            for url in urls:
                with httpx.stream("GET", f"{url}events", timeout=120, trust_env=False) as answer:
                    events = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {"))
                    snapshot = next(event for event in events if event["point"].get("requests"))
                (cache,) = snapshot["caches"]
                assert [tier["name"] for tier in cache["tiers"]] == ["l1", "l2", "l3"]
                assert cache["backplane"]["state"] == "following"
                assert snapshot["pools"][0]["healthy"]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    assert process.returncode == 130
    check_nothing_left(scratch)
