"""The tutorial: its files run with real servers in two workers, and its commands print what it shows."""

import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
CONSOLE = re.compile(r"^```text\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)

SPANS = re.compile(r"^```text\n(acgsperf\..*?)^```$", re.MULTILINE | re.DOTALL)


def without_times(lines):
    return [re.sub(r"[\d.]+ ms$", "", line) for line in lines]


def commands():
    """The commands of the page, and the line that each one prints."""
    for block in CONSOLE.findall(PAGE.read_text()):
        for entry in block.removeprefix("$ ").split("\n$ "):
            command, _, printed = entry.strip().partition("\n")
            yield shlex.split(command), printed


class Terminals:
    """Runs the commands of the page in a folder."""

    def __init__(self, folder, stack):
        self._folder = folder
        self._stack = stack
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._ports = {}

    def run(self, command, printed):
        match command:
            case ["python", "servers.py"]:
                servers = self._start(["servers.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                for _ in range(2):
                    export, setting = shlex.split(servers.stdout.readline())
                    assert export == "export"
                    name, _, value = setting.partition("=")
                    self._environment[name] = value
            case ["python", program]:
                subprocess.run([sys.executable, program], cwd=self._folder, env=self._environment, check=True)
            case [directory, "uvicorn", application, "--port", port] if directory.startswith("WORKERS_DIRECTORY="):
                self._environment["WORKERS_DIRECTORY"] = directory.partition("=")[2]
                output = self._stack.enter_context(self._output(port).open("w"))
                worker = self._start(
                    ["-m", "uvicorn", application, "--port", "0"], stderr=subprocess.PIPE, stdout=output
                )
                while not (found := re.search(r"running on (http://\S+)", line := worker.stderr.readline())):
                    assert line, f"the worker on port {port} did not start"
                self._ports[port] = found[1]
            case ["curl", "-s", url, "|", "grep", pattern]:
                self._curl("GET", self._address(url), printed, pattern)
            case ["curl", "-X", method, url]:
                self._curl(method, self._address(url), printed)
            case ["curl", url]:
                self._curl("GET", self._address(url), printed)
            case _:
                raise AssertionError(f"the test does not know {shlex.join(command)}")

    def spans(self, port):
        """The spans of loads that the terminal of a worker shows."""
        return [line for line in self._output(port).read_text().splitlines() if line.startswith("acgsperf.cache.load:")]

    def _output(self, port):
        return self._folder / f"worker {port}"

    def _address(self, url):
        port, slash, path = url.removeprefix("localhost:").partition("/")
        return self._ports[port] + slash + path

    def _curl(self, method, url, printed, pattern=""):
        def answer():
            text = httpx.request(method, url, timeout=60).text
            return "\n".join(line for line in text.splitlines() if re.search(pattern, line))

        if method != "GET":
            assert answer() == printed
            return
        # A record takes a millisecond to the other worker, and its metrics take up to 5 seconds.
        deadline = time.monotonic() + 20
        while (found := answer()) != printed:
            assert time.monotonic() < deadline, f"{url} returned {found}, expected {printed}"

    def _start(self, arguments, **pipes):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=self._folder, env=self._environment, text=True, **pipes
        )
        self._stack.enter_context(process)
        self._stack.callback(process.terminate)
        return process


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of the tutorial."""
    subprocess.run([sys.executable, ROOT / "docs" / "tools" / "example_files.py", tmp_path], check=True)
    shop = tmp_path / "tutorial" / "shop.py"
    # The machine that runs the tests may be busy for longer.
    shop.write_text(re.sub(r"deadline=0\.\d+", "deadline=10", shop.read_text()))
    return shop.parent


def test_the_commands_of_the_tutorial_print_what_it_shows(folder):
    with ExitStack() as stack:
        terminals = Terminals(folder, stack)
        for command, printed in commands():
            terminals.run(command, printed)
        for port, shown in zip(("8001", "8002"), SPANS.findall(PAGE.read_text()), strict=True):
            assert without_times(terminals.spans(port)) == without_times(shown.splitlines())


def test_the_tests_of_the_application_pass(folder, servers):
    environment = os.environ | {"REDIS_URL": servers.redis_url, "DATABASE_URL": servers.database_url}
    settings = ["-W", "error", "-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *settings]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert re.search(r"^4 passed in ", done.stdout, re.MULTILINE), done.stdout + done.stderr
