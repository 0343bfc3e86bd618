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

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
CONSOLE = re.compile(r"^```text\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)


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
            case ["uvicorn", application, "--port", port]:
                worker = self._start(["-m", "uvicorn", application, "--port", "0"], stderr=subprocess.PIPE)
                while not (found := re.search(r"running on (http://\S+)", line := worker.stderr.readline())):
                    assert line, f"the worker on port {port} did not start"
                self._ports[port] = found[1]
            case ["curl", *method, url]:
                port, slash, path = url.removeprefix("localhost:").partition("/")
                self._curl(method[1] if method else "GET", self._ports[port] + slash + path, printed)
            case _:
                raise AssertionError(f"the test does not know {shlex.join(command)}")

    def _curl(self, method, url, printed):
        if method != "GET":
            assert httpx.request(method, url, timeout=60).text == printed
            return
        # A record takes a millisecond to the other worker.
        deadline = time.monotonic() + 10
        while (answer := httpx.get(url, timeout=60).text) != printed:
            assert time.monotonic() < deadline, f"{url} returned {answer}, expected {printed}"

    def _start(self, arguments, **pipes):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=self._folder, env=self._environment, text=True, **pipes
        )
        self._stack.enter_context(process)
        self._stack.callback(process.terminate)
        return process


def test_the_commands_of_the_tutorial_print_what_it_shows(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "tools" / "example_files.py", tmp_path], check=True)
    shop = tmp_path / "tutorial" / "shop.py"
    # The machine that runs the tests may be busy for longer.
    shop.write_text(re.sub(r"deadline=0\.\d+", "deadline=10", shop.read_text()))
    with ExitStack() as stack:
        terminals = Terminals(shop.parent, stack)
        for command, printed in commands():
            terminals.run(command, printed)
