"""`acgsperf top` and `acgsperf dashboard`, as a terminal and a browser see them."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import httpx
import pytest
from msgspec.structs import replace
from rich.console import Console

from acgsperf.dashboard.compose import compose
from acgsperf.dashboard.interval import Interval, Observation
from acgsperf.dashboard.snapshot import InstanceState, TrialState
from acgsperf.dashboard.terminal import Keys
from acgsperf.dashboard.top_view import VIEWS, Screen

COMMAND = [sys.executable, "-m", "acgsperf"]


def figures(count):
    """The figures of so many caches and pools, with long names."""
    caches = [f"cache-{number}-{'x' * 60}" for number in range(count)]
    pools = [f"pool-{number}-{'x' * 60}" for number in range(count)]
    tiers = {(name, tier): 123_456_789 for name in caches for tier in ("l1", "l2", "l3")}
    return {
        "processes": {(): 4},
        "requests": {(): 123_456_789},
        "request_errors": {(): 12},
        "request_misses": {(): 12},
        "request_duration_seconds": {(): [100, 1000, 12_345, 0]},
        "cache_hits": tiers,
        "cache_misses": tiers,
        "cache_breaker_state": {(name, tier, "open"): 1 for name in caches for tier in ("l2", "l3")},
        "cache_entries": {(name,): 987_654 for name in caches},
        "backplane_state": {(name, "recovering"): 1 for name in caches},
        "pool_connections": {(name,): number for number, name in enumerate(pools)},
        "pool_used_connections": {(name,): number for number, name in enumerate(pools)},
    }


def instance(number):
    """An instance with long texts."""
    return InstanceState(
        name=f"instance-{number}-{'x' * 60}",
        instance=f"{number:016x}",
        version="1.0.0",
        seconds=1e6,
        age_s=30.0,
        requests=123_456_789.0,
        errors=123_456.0,
        hit_rate=0.99999,
        p50_ms=0.1234,
        p99_ms=1234.5,
        total=123_456_789,
        lag_ms=123.4,
        unhealthy=("l2", "l3", "x" * 60),
        alerts=("P99",),
        revision=10,
        arm="new",
        settings={},
    )


def trial(number):
    """A trial with a long name."""
    return TrialState(f"setting-{number}-{'x' * 60}", 100_000.0, 200_000.0, "abandoned", -0.123, 0.000123, 64)


def screen_with(count):
    bounds_ns = (10**6, 5 * 10**6)
    before, now = Observation(1.0, 1.0, {}, bounds_ns), Observation(2.0, 2.0, figures(count), bounds_ns)
    snapshot = compose("http://service.example:8000/metrics" * 3, Interval(now, before))
    screen = Screen()
    screen.show(
        replace(
            snapshot,
            instances=tuple(instance(number) for number in range(count)),
            trials=tuple(trial(number) for number in range(count)),
        )
    )
    return screen


def lines_of(screen, width=80, height=24):
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=False)
    console.print(screen)
    return output.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("view", range(1, len(VIEWS) + 1))
@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_every_view_fits_the_terminal(view, count, width, height):
    screen = screen_with(count)
    screen.press(str(view))
    lines = lines_of(screen, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")
    if count and width == 80:
        # No figure is cut, only names.
        assert "…" not in re.sub(r"^\S+…|…$", "", lines[7])


def test_rows_are_sorted_by_the_column_that_keys_choose():
    screen = screen_with(3)
    screen.press("3")

    def order():
        return re.findall(r"^pool-(\d)", "\n".join(lines_of(screen, 160)), re.MULTILINE)

    assert order() == ["2", "1", "0"]
    screen.press("r")
    assert order() == ["0", "1", "2"]
    for _ in VIEWS[2].columns:
        screen.press("s")
    assert "Name▲" in "\n".join(lines_of(screen, 160))
    assert order() == ["0", "1", "2"]


def test_keys_switch_the_view_and_pause():
    screen = screen_with(1)
    assert screen.press("left")
    assert "Outcome" in "\n".join(lines_of(screen))
    assert screen.press("right")
    assert "Circuit" in "\n".join(lines_of(screen))
    screen.press("p")
    assert screen.paused
    assert "paused" in lines_of(screen)[-2]
    assert not screen.press("q")


HOSTILE = "\x1b]0;title\x07\x1b[2J\u202e\udcff\n\x9b2J"


@pytest.mark.parametrize("view", range(1, len(VIEWS) + 1))
def test_no_control_character_of_a_page_reaches_the_terminal(view):
    def hostile(value):
        if isinstance(value, dict):
            return {hostile(name): hostile(inner) for name, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(part if part in ("l1", "l2", "l3") else HOSTILE + part[:9] for part in value)
        return value

    bounds_ns = (10**6, 5 * 10**6)
    found = {name: hostile(series) for name, series in figures(2).items()}
    found["http_request_duration_seconds"] = {(HOSTILE,): [1, 2, 3, 4]}
    before, now = Observation(1.0, 1.0, {}, bounds_ns), Observation(2.0, 2.0, found, bounds_ns)
    screen = Screen()
    screen.press(str(view))
    screen.show(replace(compose(HOSTILE, Interval(now, before)), missing=(HOSTILE,)))
    lines = lines_of(screen, 300)
    assert all(line.isprintable() for line in lines)
    assert r"\x1b]0;title\x07" in lines[0]
    screen.fail(HOSTILE)
    assert all(line.isprintable() for line in lines_of(screen))


def test_a_page_that_does_not_answer_is_named_on_the_screen():
    screen = Screen()
    assert "waiting for the first figures" in lines_of(screen)[0]
    screen.fail("http://localhost/: no answer within 5 s")
    assert "no answer" in lines_of(screen)[0]


@contextmanager
def terminal(*arguments):
    """A command in a terminal of 80 by 24 characters: its process, and the file of the other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        yield process, ours
        # It has left the terminal as it was.
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        os.close(ours)
        os.close(theirs)


def read_until(ours, text):
    """Read what the terminal shows until it has a text."""
    shown, deadline = "", time.monotonic() + 90
    while text not in shown:
        assert time.monotonic() < deadline, shown[-2000:]
        if select.select([ours], [], [], 1)[0]:
            shown += os.read(ours, 65_536).decode(errors="replace")
    return shown


def end_of(process, ours):
    """Read the rest, so that the process can end, and return its status."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline
        if select.select([ours], [], [], 0.1)[0]:
            os.read(ours, 65_536)
    return process.returncode


@pytest.fixture
def keyboard(monkeypatch):
    """A function that types bytes in the terminal of this process."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "rb", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield lambda typed: os.write(ours, typed)
    os.close(ours)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"2s", ["2", "s"]),
        (b"\x1b[C\x1b[C\x1b[D", ["right", "right", "left"]),
        (b"\x1bOCq", ["right", "q"]),
        (b"s" * 50 + b"\x1b[A", ["s"] * 50 + ["up"]),
        (b"\x1b[15~\x1b[1;5Cq", ["", "", "q"]),
        ("é²q".encode(), ["", "", "q"]),
        (b"\tr", ["right", "r"]),
        (b"\x1b", [""]),
        (b"\xffq", ["", "q"]),
    ],
)
def test_every_key_counts_also_if_many_come_at_once(keyboard, typed, expected):
    with Keys() as keys:
        keyboard(typed)
        assert [keys.wait(10) for _ in expected] == expected
        assert keys.wait(0) == ""


def test_top_in_a_terminal(served):
    with terminal("top", f"{served.url}/metrics", "--interval", "0.2") as (process, ours):
        read_until(ours, "shop L1")
        os.write(ours, b"3")
        read_until(ours, "Leaks")
        os.write(ours, b"\x1b[C")
        read_until(ours, "/work")
        os.write(ours, b"q")
        assert end_of(process, ours) == 0


def test_ctrl_c_ends_top_and_restores_the_terminal(served):
    with terminal("top", f"{served.url}/metrics") as (process, ours):
        read_until(ours, "shop L1")
        process.send_signal(signal.SIGINT)
        assert end_of(process, ours) == 130


def test_top_waits_for_an_application_that_does_not_run():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with terminal("top", f"http://127.0.0.1:{port}/metrics", "--interval", "0.2") as (process, ours):
        read_until(ours, "Connection refused")
        os.write(ours, b"q")
        assert end_of(process, ours) == 0


def test_top_prints_the_figures_once_where_there_is_no_terminal(served):
    done = subprocess.run(
        [*COMMAND, "top", f"{served.url}/metrics", "--interval", "0.2"],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "shop L1" in done.stdout


def test_the_dashboard_of_a_page_of_metrics(served):
    with subprocess.Popen(
        [*COMMAND, "dashboard", f"{served.url}/metrics", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = re.match(r"Dashboard: (\S+) ", process.stdout.readline())[1]
            with httpx.stream("GET", f"{url}events", timeout=60, trust_env=False) as answer:
                lines = answer.iter_lines()
                data = next(line for line in lines if line.startswith("data: {"))
            assert '"name":"shop"' in data
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130


@pytest.mark.parametrize("command", ["top", "dashboard"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://user:secret@host/"], "the URL must not contain a user name or a password"),
        (["localhost:8000"], "the URL must begin with http"),
        (["http://host/", "--interval", "0"], "--interval must be a number from 0.1 to 3,600, got '0'"),
    ],
)
def test_bad_arguments_are_one_line(command, arguments, message):
    done = subprocess.run([*COMMAND, command, *arguments], check=False, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"acgsperf: {message}")
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
