"""Runs the public suite for HTTP caches against the middleware.

    python tests/asgi/conformance/run.py FOLDER

FOLDER is that of the npm package `http-cache-tests`. Prints the table of `docs/asgi.md`. Exits with 1

- if fewer tests pass than REQUIRED and OPTIMAL;
- if `gaps.py` does not name a missing behaviour, or names one that is not missing;
- if `docs/asgi.md` does not have the lines of the table.

The last two apply to the VERSION of the suite only. Of another one, only the number of tests that pass counts.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gaps import GAPS, OF_HEURISTIC

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "asgi.md"
VERSION = "0.4.5"
REQUIRED, OPTIMAL = 140, 70
HEURISTIC = "0.1"
# Tests depend on time: one that passes when it runs again has failed on a slow machine.
MAX_RUNS = 4


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(port, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{process.args} does not listen on port {port}; its errors are in {log.name}")


@contextmanager
def served(folder):
    """The URLs of a middleware without and of one with heuristic freshness, both in front of the suite's server."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = stack.enter_context((folder.parents[1] / "errors.log").open("w"))

        def start(arguments, port, cwd, environment):
            process = subprocess.Popen(
                arguments, cwd=cwd, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            wait_for(port, process, log)

        def middleware(environment):
            port = free_port()
            command = [sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(port), "--http", "httptools"]
            command += ["--no-server-header", "--no-date-header", "--log-level", "error"]
            # The suite reuses connections after pauses.
            command += ["--timeout-keep-alive", "60"]
            start(command, port, HERE, environment)
            return f"http://127.0.0.1:{port}"

        port = free_port()
        settings = {"protocol": "http", "port": str(port), "pidfile": str(scratch / "pid")}
        environment = {f"npm_config_{name}": value for name, value in settings.items()}
        start(["node", "server/server.mjs"], port, folder, environment)
        origin = {"ORIGIN": f"127.0.0.1:{port}"}
        yield middleware(origin), middleware(origin | {"HEURISTIC": HEURISTIC})


def run_suite(folder, url, ids=()):
    """The result of each test of the suite, or of those with the given ids."""
    command = ["node", "--no-warnings", HERE / "suite.mjs", folder, url, *ids]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600).stdout)


def run_until_stable(folder, url, known):
    """The result of each test. Those that fail although they are not known to do so run again."""
    found = {test["id"]: test for test in run_suite(folder, url)}
    for _ in range(MAX_RUNS - 1):
        failed = [test["id"] for test in found.values() if is_unknown(test, known)]
        if not failed:
            break
        found |= {test["id"]: test for test in run_suite(folder, url, failed)}
    return list(found.values())


def is_unknown(test, known):
    return not test["passed"] and test["kind"] != "check" and test["id"] not in known


def counted(tests):
    """How many tests there are of each kind, and how many passed."""
    total = Counter(test["kind"] for test in tests)
    passed = Counter(test["kind"] for test in tests if test["passed"])
    return {kind: (passed[kind], total[kind]) for kind in ("required", "optimal")}


def table(tests):
    """The table of the documentation: a row for each part of the suite that has required or optional behaviours."""
    lines = ["| part of the suite | required | optional | why not all |", "|---|---|---|---|"]
    for suite in dict.fromkeys(test["suite"] for test in tests):
        of_suite = [test for test in tests if test["suite"] == suite and test["kind"] != "check"]
        if of_suite:
            cells = [f"{passed} of {total}" if total else "" for passed, total in counted(of_suite).values()]
            missing = dict.fromkeys(GAPS.get(test["id"], "?") for test in of_suite if not test["passed"])
            name = suite.replace("Respones", "Responses")
            lines.append(f"| {name} | {' | '.join(cells)} | {'; '.join(missing)} |")
    (required, of_required), (optimal, of_optimal) = counted(tests).values()
    lines.append(f"| **all** | **{required} of {of_required}** | **{optimal} of {of_optimal}** | |")
    return lines


def differences(tests, plain, lines):
    """What `gaps.py` and `docs/asgi.md` say wrongly."""
    page = PAGE.read_text().splitlines()
    named = {test["id"] for test in tests if not test["passed"]}
    return [
        *(f"not in gaps.py: {described(test)}" for test in tests if is_unknown(test, GAPS)),
        *(
            f"not in gaps.py, without heuristic: {described(test)}"
            for test in plain
            if is_unknown(test, GAPS.keys() | OF_HEURISTIC)
        ),
        *(f"passed, so remove it from gaps.py: {name}" for name in GAPS.keys() - named),
        *(f"not in docs/asgi.md: {line}" for line in lines if line not in page),
    ]


def described(test):
    return f"{test['id']} ({test['kind']}): {test['detail']}"


def main(folder):
    version = json.loads((folder / "package.json").read_text())["version"]
    with served(folder) as urls, ThreadPoolExecutor() as threads:
        known = (GAPS.keys() | OF_HEURISTIC, GAPS.keys())
        plain, tests = threads.map(lambda pair: run_until_stable(folder, *pair), zip(urls, known, strict=True))
    lines = table(tests)
    print(*lines, sep="\n")
    print("Without the option `heuristic`:", counted(plain))
    found = differences(tests, plain, lines)
    for difference in found:
        print(difference)
    passed, of_plain = counted(tests), counted(plain)
    few = passed["optimal"][0] < OPTIMAL or min(passed["required"][0], of_plain["required"][0]) < REQUIRED
    if few:
        print(f"at least {REQUIRED} required and {OPTIMAL} optional behaviours were expected")
    return 1 if few or (found and version == VERSION) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
